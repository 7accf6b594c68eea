-- KEYS: the list. ARGV: prefix, consumer, session, most messages, lease in ms, heartbeat timeout in ms.
-- Returns paused or not, ms until something may fall due (-1 for never), and the deliveries.
local q = open(KEYS[1], ARGV[1])
local consumer, session, most = ARGV[2], ARGV[3], tonumber(ARGV[4])
local deadline = now + tonumber(ARGV[5])

touch(q, 'consumers', 'HGET', 'HSET')
touch(q, 'list', 'RPOP')
touch(q, 'index', 'ZRANGEBYLEX', 'ZREM')
touch(q, 'records', 'HGET', 'HSET', 'HDEL')
touch(q, 'payloads', 'HGET', 'HSET', 'HDEL')
touch(q, 'errors', 'HGET', 'HSET', 'HDEL')
touch(q, 'leased', 'ZRANGEBYSCORE', 'ZRANGE', 'ZADD', 'ZREM')
touch(q, 'delayed', 'ZRANGEBYSCORE', 'ZRANGE', 'ZREM')
touch(q, 'returned', 'ZRANGE', 'ZADD', 'ZREM')
touch(q, 'parked', 'ZRANGEBYLEX', 'ZADD', 'ZREM')
touch(q, 'keys', 'HGET', 'HSET', 'HDEL')
touch(q, 'dead', 'ZADD')
touch(q, 'dead_ids', 'HSET')
ready({ 'HDEL', 'HGET', 'HSET', 'RPOP', 'ZADD', 'ZRANGE', 'ZRANGEBYLEX', 'ZRANGEBYSCORE', 'ZREM' })

-- A name that comes back in another process: what the first one held is given back at once.
local known = call('HGET', q.consumers, consumer)
if not known or string.sub(known, 14) ~= session then
  if known then take_back(q, function(who) return who == consumer end) end
  call('HSET', q.queue, 'made', 1)
  call('HSET', q.consumers, consumer, text(now + tonumber(ARGV[6])) .. session)
end
tick(q)
if q.paused then
  close(q)
  return { 1, -1, {} }
end

local taken, records, payloads, leased, bytes = {}, {}, {}, {}, 0
-- Leases a message, or sends it where it belongs; `payload` when it comes from the list.
local function hand_out(number, record, payload)
  local key, content = record[KEY], payload or call('HGET', q.payloads, number)
  if not content or (record[EXPIRES] ~= 0 and record[EXPIRES] <= now) then
    forget(q, number, record)
    count(q, 'dropped', 1)
  elseif record[ATTEMPTS] >= q.attempts then
    if payload then call('HSET', q.payloads, number, payload) end
    bury(q, number, record, 'its attempts are spent: every consumer that had it let the lease expire or died')
  elseif key ~= '' and (call('HGET', q.keys, key) or number) ~= number then
    if payload then call('HSET', q.payloads, number, payload) end
    call('ZADD', q.parked, 0, key .. number)
  else
    if key ~= '' then call('HSET', q.keys, key, number) end
    if payload then
      payloads[#payloads + 1] = number
      payloads[#payloads + 1] = payload
    end
    record[SETTLED] = record[SETTLED] or record[ATTEMPTS]
    local interrupted = record[ATTEMPTS] > record[SETTLED] and 1 or 0
    record[ATTEMPTS], record[FENCE], record[CONSUMER] = record[ATTEMPTS] + 1, next_ticket(q), consumer
    records[#records + 1] = number
    records[#records + 1] = cmsgpack.pack(record)
    leased[#leased + 1] = deadline
    leased[#leased + 1] = number
    bytes = bytes + #content
    taken[#taken + 1] = {
      number, text(record[FENCE]), record[ATTEMPTS], record[ID], record[AT], record[BLOB], content, interrupted,
    }
  end
end

while #taken < most and bytes < ENOUGH_BYTES do
  local piece = math.min(most - #taken, PIECE)
  local back = call('ZRANGE', q.returned, 0, piece - 1)
  if #back > 0 then
    call('ZREM', q.returned, unpack(back))
    for _, number in ipairs(back) do
      local record, payload = record_of(q, number), nil
      if not record then
        -- What is left of a message whose record cannot be read is its payload.
        payload = call('HGET', q.payloads, number) or nil
        call('HDEL', q.payloads, number)
        if payload then number, record = adopt(q) end
      end
      if record then hand_out(number, record, payload) end
    end
  else
    local popped = call('RPOP', q.list, piece)
    if not popped or #popped == 0 then break end
    for _, payload in ipairs(popped) do
      local number, record = unindex(q, payload), nil
      if number then record = record_of(q, number) end
      if not record then number, record = adopt(q) end
      hand_out(number, record, payload)
    end
  end
end
call_all('HSET', q.payloads, payloads)
call_all('HSET', q.records, records)
call_all('ZADD', q.leased, leased)
close(q)

local soonest = -1
if #taken == 0 then
  for _, from in ipairs({ q.delayed, q.leased }) do
    local first = call('ZRANGE', from, 0, 0, 'WITHSCORES')
    if first[2] then
      local left = math.max(tonumber(first[2]) - now, 0)
      if soonest < 0 or left < soonest then soonest = left end
    end
  end
end
return { 0, soonest, taken }
