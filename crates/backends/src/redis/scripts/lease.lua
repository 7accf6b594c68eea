-- KEYS: the list. ARGV: prefix, consumer, session, most messages, lease in ms, heartbeat timeout in ms.
-- Returns paused or not, ms until a message may become due (-1 for never, 0 to check again at once), and the deliveries.
-- Everything is read and decided before the first change, so only the commands of this call are checked.
local q = open(KEYS[1], ARGV[1])
local consumer, session, most = ARGV[2], ARGV[3], tonumber(ARGV[4])
local deadline = now + tonumber(ARGV[5])

-- For messages that end or are parked instead of being leased.
local function touch_diverted()
  touch_buried(q)
  touch_forgotten(q)
  touch(q, 'payloads', 'HSET')
  touch(q, 'parked', 'ZADD')
end

-- A consumer name that is reused in another process: the deliveries of the first one are returned at once.
local known = read_key('hash', 'HGET', q.consumers, consumer)
local joins = not known or string.sub(known, 14) ~= session
if joins then touch(q, 'consumers', 'HSET') end
local late = due(q)
if (known and joins) or late then
  -- Then the first change precedes further reads, so everything is checked now.
  touch_return_leases(q)
  touch_due(q)
  touch_diverted()
  touch(q, 'list', 'LRANGE,LTRIM')
  touch(q, 'index', 'ZRANGEBYLEX,ZREM')
  touch(q, 'payloads', 'HMGET,HSET,HDEL')
  touch(q, 'records', 'HMGET,HSET')
  touch(q, 'returned', 'ZRANGE,ZREM')
  touch(q, 'keys', 'HGET,HSET')
  touch(q, 'delayed', 'ZRANGE')
  touch(q, 'leased', 'ZADD')
  ready({
    'HDEL', 'HGET', 'HMGET', 'HSET', 'LRANGE', 'LTRIM', 'ZADD', 'ZRANGE', 'ZRANGEBYLEX', 'ZRANGEBYSCORE', 'ZREM',
  })
  if known and joins then return_leases(q, function(who) return who == consumer end) end
  if late then tick(q, late) end
end
local function join()
  if not joins then return end
  call('HSET', q.queue, 'made', 1)
  call('HSET', q.consumers, consumer, text(now + tonumber(ARGV[6])) .. session)
end
local function check()
  if not is_ready then ready({ 'HDEL', 'HGET', 'HSET', 'LTRIM', 'ZADD', 'ZRANGEBYLEX', 'ZREM' }) end
end
if q.paused then
  if joins then check() end
  join()
  close(q)
  return { 1, -1, {} }
end

local taken, keyed, expired, spent, parked = {}, {}, {}, {}, {}
local holders, bytes, diverted = {}, 0, false
-- Decides about one message; `fresh` when its payload comes from the list.
local function decide(number, record, payload, fresh)
  local key, one = record[KEY], { number, record, payload, fresh }
  if key ~= '' and holders[key] == nil then holders[key] = read_key('hash', 'HGET', q.keys, key) end
  if not payload or (record[EXPIRES] ~= 0 and record[EXPIRES] <= now) then
    expired[#expired + 1] = one
  elseif record[ATTEMPTS] >= q.attempts then
    spent[#spent + 1] = one
  elseif key ~= '' and (holders[key] or number) ~= number then
    parked[#parked + 1] = one
  else
    if key ~= '' then
      holders[key] = number
      keyed[#keyed + 1] = key
      keyed[#keyed + 1] = number
    end
    bytes = bytes + #payload
    taken[#taken + 1] = one
    return
  end
  diverted = true
end

-- Returned messages come before the list.
local back, lost, seen, more = {}, {}, 0, true
while more and #taken < most and bytes < ENOUGH_BYTES and seen < STEP do
  local piece = math.min(most - #taken, PIECE)
  local numbers = read_key('zset', 'ZRANGE', q.returned, seen, seen + piece - 1)
  more = #numbers == piece
  if #numbers > 0 then
    local records = read_key('hash', 'HMGET', q.records, unpack(numbers))
    local payloads = read_key('hash', 'HMGET', q.payloads, unpack(numbers))
    for at, number in ipairs(numbers) do
      back[#back + 1] = number
      local record = unpacked_or_nil(records[at])
      if record then
        decide(number, record, payloads[at], false)
      else
        -- Of a message with an unreadable record only the payload remains.
        lost[#lost + 1] = number
        if payloads[at] then
          local again, adopted = adopt(q)
          decide(again, adopted, payloads[at], true)
        end
      end
    end
  end
  seen = seen + #numbers
end

local popped, unindexed, equal = 0, {}, {}
more = true
while more and #taken < most and bytes < ENOUGH_BYTES and seen < STEP do
  local piece = math.min(most - #taken, PIECE)
  local payloads = read_key('list', 'LRANGE', q.list, -popped - piece, -popped - 1)
  more = #payloads == piece
  popped, seen = popped + #payloads, seen + #payloads
  local numbers, asked = {}, {}
  for at = #payloads, 1, -1 do
    local digest = sha1(payloads[at])
    -- Equal payloads have different numbers.
    local before = equal[digest] or 0
    equal[digest] = before + 1
    local member = read_key('zset', 'ZRANGEBYLEX', q.index, '[' .. digest, '(' .. digest .. ':', 'LIMIT', before, 1)[1]
    if member then
      unindexed[#unindexed + 1] = member
      numbers[at] = string.sub(member, 41)
      asked[#asked + 1] = numbers[at]
    end
  end
  local records = #asked > 0 and read_key('hash', 'HMGET', q.records, unpack(asked)) or {}
  local next_asked = 0
  for at = #payloads, 1, -1 do
    local number, record = numbers[at], nil
    if number then
      next_asked = next_asked + 1
      record = unpacked_or_nil(records[next_asked])
    end
    if not record then number, record = adopt(q) end
    decide(number, record, payloads[at], true)
  end
end

-- Ended messages may unlock others of their key: check again at once.
local soonest = seen > 0 and 0 or -1
if seen == 0 then
  for _, from in ipairs({ q.delayed, q.leased }) do
    local first = call('ZRANGE', from, 0, 0, 'WITHSCORES')
    if first[2] then
      local left = math.max(tonumber(first[2]) - now, 1)
      if soonest < 0 or left < soonest then soonest = left end
    end
  end
end

if seen > 0 then
  touch(q, 'list', 'LTRIM')
  touch(q, 'index', 'ZREM')
  touch(q, 'payloads', 'HSET,HDEL')
  touch(q, 'records', 'HSET')
  touch(q, 'leased', 'ZADD')
  touch(q, 'returned', 'ZREM')
  if #keyed > 0 then touch(q, 'keys', 'HSET') end
  if diverted then touch_diverted() end
end
if seen > 0 or joins then check() end
join()
call_all('ZREM', q.returned, back)
call_all('HDEL', q.payloads, lost)
if popped > 0 then call('LTRIM', q.list, 0, -popped - 1) end
call_all('ZREM', q.index, unindexed)
call_all('HSET', q.keys, keyed)
-- Parked before others end: ending a message unlocks the next one of its key.
for _, one in ipairs(parked) do
  if one[4] then call('HSET', q.payloads, one[1], one[3]) end
  call('ZADD', q.parked, 0, one[2][KEY] .. one[1])
end
for _, one in ipairs(expired) do
  forget(q, one[1], one[2])
  count(q, 'dropped', 1)
end
for _, one in ipairs(spent) do
  if one[4] then call('HSET', q.payloads, one[1], one[3]) end
  bury(q, one[1], one[2], 'its attempts are spent: every consumer that had it let the lease expire or died')
end

local records, payloads, leased, deliveries = {}, {}, {}, {}
for at, one in ipairs(taken) do
  local number, record = one[1], one[2]
  if one[4] then
    payloads[#payloads + 1] = number
    payloads[#payloads + 1] = one[3]
  end
  record[SETTLED], record[LEASED] = record[SETTLED] or record[ATTEMPTS], now
  local interrupted = record[ATTEMPTS] > record[SETTLED] and 1 or 0
  record[ATTEMPTS], record[FENCE], record[CONSUMER] = record[ATTEMPTS] + 1, next_ticket(q), consumer
  records[#records + 1] = number
  records[#records + 1] = cmsgpack.pack(record)
  leased[#leased + 1] = deadline
  leased[#leased + 1] = number
  deliveries[at] = {
    number, text(record[FENCE]), record[ATTEMPTS], record[ID], record[AT], record[BLOB], one[3], interrupted,
  }
end
call_all('HSET', q.payloads, payloads)
call_all('HSET', q.records, records)
call_all('ZADD', q.leased, leased)
close(q)
return { 0, soonest, deliveries }
