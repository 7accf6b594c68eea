-- What every script on queues shares: keys, the clock, the records, and how a message moves.
--
-- A ready message is its bare payload in the list that has the queue's own
-- name. What else is known of it is a record under its number; `index` leads
-- from a payload's digest to the numbers of those that wait in the list, so an
-- item that somebody else pushed is simply one without a number. A message
-- that has left the list keeps its payload in `payloads`.
--
-- A number is the server's time in microseconds, or one more than the last:
-- it grows with every arrival also when the server lost its last second.

local sha1 = redis.sha1hex
local clock = redis.call('TIME')
local now_us = clock[1] * 1000000 + clock[2]
local now = math.floor(now_us / 1000)

-- Errors kept of a message's life, and how long each may be.
local HISTORY, HISTORY_BYTES = 10, 1024
-- Most numbers that one step moves, so that no script keeps the server for long.
local STEP = 1000
-- Messages fetched at once, and bytes after which no more are, so that large ones do not fill the server's memory.
local PIECE, ENOUGH_BYTES = 16, 32 * 1024 * 1024

-- Fields of a record.
-- SETTLED: attempts up to the last one that ended in an outcome; absent until a message is first leased.
local ID, AT, ATTEMPTS, FENCE, EXPIRES, KEY, BLOB, CONSUMER, SETTLED = 1, 2, 3, 4, 5, 6, 7, 8, 9

-- Exact up to 2^53, where `tostring` rounds.
local function text(number) return string.format('%.0f', number) end

-- The keys beside the list are put together when they are asked for: most scripts need few.
local beside = {
  __index = function(q, name)
    local key = rawget(q, 'side') .. name
    rawset(q, name, key)
    return key
  end,
}

-- Fields of numbers, those behind `dedup_ms` counted up.
local NUMBERS = { 'ticket', 'attempts', 'dedup_ms', 'enqueued', 'acked', 'retried', 'dropped', 'duplicates' }

local function check_numbers(queue, known)
  for at, field in ipairs(NUMBERS) do
    local value = known[at]
    if value and (#value > 16 or string.find(value, '%D')) then refuse('NOTANUMBER', field, queue) end
  end
end

local function open(list, side)
  local queue = side .. 'queue'
  name_key(queue, 'hash', 'HSET')
  local known = read_key('hash', 'HMGET', queue, 'ticket', 'attempts', 'dedup_ms', 'enqueued', 'acked', 'retried', 'dropped',
    'duplicates', 'paused', 'max_depth')
  check_numbers(queue, known)
  return setmetatable({
    list = list, side = side, queue = queue, known = known,
    ticket = tonumber(known[1] or 0), attempts = tonumber(known[2] or DEFAULT_ATTEMPTS),
    dedup_ms = tonumber(known[3] or DEFAULT_DEDUP_MS), max_depth = tonumber(known[10] or nil) or false,
    paused = known[9] == '1', counts = {}, firsts = {}, ticket_moved = false, planned = false,
  }, beside)
end

local HASHES = { records = true, payloads = true, errors = true, keys = true, dead_ids = true, consumers = true }

-- Names commands on one of the queue's keys, before anything changes.
local function touch(q, name, ...)
  allow(q[name], HASHES[name] and 'hash' or name == 'list' and 'list' or 'zset', ...)
end

-- A number that was never given before, for arrivals and fences.
local function next_ticket(q)
  q.ticket = math.max(q.ticket + 1, now_us)
  q.ticket_moved = true
  return q.ticket
end

local function count(q, name, by) q.counts[name] = (q.counts[name] or 0) + by end

-- Writes what was counted.
local function close(q)
  local fields = {}
  if q.ticket_moved then fields = { 'ticket', text(q.ticket) } end
  for at = 4, #NUMBERS do
    local by = q.counts[NUMBERS[at]]
    if by then
      fields[#fields + 1] = NUMBERS[at]
      fields[#fields + 1] = text(tonumber(q.known[at] or 0) + by)
    end
  end
  if #fields > 0 then call('HSET', q.queue, unpack(fields)) end
end

-- Calls with a long list of arguments, in pieces that Lua can unpack; pieces keep pairs together.
local function call_all(command, key, args)
  for from = 1, #args, 4000 do
    call(command, key, unpack(args, from, math.min(from + 3999, #args)))
  end
end

local function unpacked(packed)
  local r = cmsgpack.unpack(packed)
  -- An error when one is missing or of another type.
  return r, r[AT] + r[ATTEMPTS] + r[FENCE] + r[EXPIRES] + (r[SETTLED] or 0) + #r[ID] + #r[KEY] + #r[BLOB]
end

-- Nothing for a record that cannot be read: an error would end the script between two changes.
local function record_of(q, number)
  local packed = call('HGET', q.records, number)
  if not packed then return nil end
  local ok, record = pcall(unpacked, packed)
  return ok and record or nil
end

local function keep(q, number, record) call('HSET', q.records, number, cmsgpack.pack(record)) end

-- Back among those that are leased before anything in the list.
local function give_back(q, number) call('ZADD', q.returned, 0, number) end

local function touch_key(q)
  touch(q, 'keys', 'HGET', 'HDEL')
  touch(q, 'parked', 'ZRANGEBYLEX', 'ZREM')
  touch(q, 'returned', 'ZADD')
end

-- Lets the next message of the key go, when this one holds it.
local function free_key(q, number, record)
  local key = record[KEY]
  if key == '' or call('HGET', q.keys, key) ~= number then return end
  call('HDEL', q.keys, key)
  local parked = call('ZRANGEBYLEX', q.parked, '[' .. key, '(' .. key .. ':', 'LIMIT', 0, 1)[1]
  if parked then
    call('ZREM', q.parked, parked)
    give_back(q, string.sub(parked, #key + 1))
  end
end

-- Those of one record, or of any.
local function touch_forgotten(q, record)
  touch(q, 'records', 'HGET', 'HDEL')
  touch(q, 'payloads', 'HDEL')
  if not record or record[ATTEMPTS] > 0 then touch(q, 'errors', 'HDEL') end
  if not record or record[KEY] ~= '' then touch_key(q) end
end

-- Forgets a message that is in no list or set any more.
local function forget(q, number, record)
  call('HDEL', q.records, number)
  call('HDEL', q.payloads, number)
  if record[ATTEMPTS] > 0 then call('HDEL', q.errors, number) end
  free_key(q, number, record)
end

local function errors_of(q, number)
  local packed = call('HGET', q.errors, number)
  local ok, errors = false, nil
  if packed then ok, errors = pcall(cmsgpack.unpack, packed) end
  return ok and type(errors) == 'table' and type(errors.history) == 'table' and errors or { history = {} }
end

local function touch_buried(q)
  touch(q, 'errors', 'HGET', 'HSET')
  touch(q, 'dead', 'ZADD')
  touch(q, 'dead_ids', 'HSET')
  touch(q, 'records', 'HGET', 'HSET')
  touch_key(q)
end

local function bury(q, number, record, reason)
  local errors = errors_of(q, number)
  errors.reason, errors.died_at = string.sub(reason, 1, HISTORY_BYTES), now
  call('HSET', q.errors, number, cmsgpack.pack(errors))
  call('ZADD', q.dead, 0, number)
  call('HSET', q.dead_ids, record[ID], number)
  record[FENCE], record[CONSUMER] = 0, ''
  keep(q, number, record)
  free_key(q, number, record)
end

local function touch_due(q)
  touch(q, 'delayed', 'ZRANGEBYSCORE', 'ZREM')
  touch(q, 'leased', 'ZRANGEBYSCORE', 'ZREM')
  touch(q, 'returned', 'ZADD')
end

-- What is due becomes ready; what was leased for too long too, its attempt counted, and
-- its receipt good until the next lease.
local function tick(q)
  for _, from in ipairs({ q.delayed, q.leased }) do
    local due = call('ZRANGEBYSCORE', from, '-inf', now, 'LIMIT', 0, STEP)
    if #due > 0 then
      call('ZREM', from, unpack(due))
      for _, number in ipairs(due) do give_back(q, number) end
    end
  end
end

-- The number of the oldest of ours that has this payload, taken off the index.
local function unindex(q, payload)
  local digest = sha1(payload)
  local member = call('ZRANGEBYLEX', q.index, '[' .. digest, '(' .. digest .. ':', 'LIMIT', 0, 1)[1]
  if not member then return nil end
  call('ZREM', q.index, member)
  return string.sub(member, 41)
end

-- An item that somebody pushed without us gets a number and an id (UUIDv7) when it is first seen.
local function adopt(q)
  local number = text(next_ticket(q))
  local hex = string.format('%012x', now) .. string.sub(sha1(q.list .. number), 1, 20)
  local bytes = string.gsub(hex, '..', function(pair) return string.char(tonumber(pair, 16)) end)
  local id = string.sub(bytes, 1, 6)
    .. string.char(0x70 + string.byte(bytes, 7) % 16) .. string.sub(bytes, 8, 8)
    .. string.char(0x80 + string.byte(bytes, 9) % 64) .. string.sub(bytes, 10)
  count(q, 'enqueued', 1)
  return number, { id, now, 0, 0, 0, '', '', '' }
end

local function depth(q)
  return call('LLEN', q.list) + call('ZCARD', q.returned) + call('ZCARD', q.parked)
    + call('ZCARD', q.delayed) + call('ZCARD', q.leased)
end

local function touch_taken_back(q)
  touch(q, 'leased', 'ZRANGE', 'ZREM')
  touch(q, 'records', 'HGET', 'HSET')
  touch(q, 'returned', 'ZADD')
end

-- Voids the leases of consumers for which `gone` says so. Returns how many.
local function take_back(q, gone)
  local found = 0
  local numbers = call('ZRANGE', q.leased, 0, -1)
  for _, number in ipairs(numbers) do
    local record = record_of(q, number)
    if record and gone(record[CONSUMER]) then
      record[FENCE], record[CONSUMER] = 0, ''
      keep(q, number, record)
      call('ZREM', q.leased, number)
      give_back(q, number)
      found = found + 1
    end
  end
  return found
end

local function touch_refilled(q)
  touch(q, 'returned', 'ZREVRANGE', 'ZREM')
  touch(q, 'parked', 'ZRANGE', 'ZREM')
  touch(q, 'records', 'HGET', 'HSET')
  touch(q, 'payloads', 'HGET', 'HDEL')
  touch(q, 'keys', 'HGET', 'HDEL')
  touch(q, 'index', 'ZADD')
  touch(q, 'list', 'RPUSH')
end

-- Puts what waits beside the list back into it, oldest to be popped first, because nobody
-- but a bare BRPOP may be left to take it. The newest go first, so a step may be cut short.
local function refill(q)
  local numbers = call('ZREVRANGE', q.returned, 0, STEP - 1)
  for _, member in ipairs(call('ZRANGE', q.parked, 0, STEP - 1)) do
    numbers[#numbers + 1] = string.sub(member, 41)
    call('ZREM', q.parked, member)
  end
  table.sort(numbers, function(one, other) return one > other end)
  for _, number in ipairs(numbers) do
    local record, payload = record_of(q, number), call('HGET', q.payloads, number)
    call('ZREM', q.returned, number)
    if record and payload then
      if record[KEY] ~= '' and call('HGET', q.keys, record[KEY]) == number then
        call('HDEL', q.keys, record[KEY])
      end
      record[FENCE], record[CONSUMER] = 0, ''
      keep(q, number, record)
      call('HDEL', q.payloads, number)
      call('ZADD', q.index, 0, sha1(payload) .. number)
      call('RPUSH', q.list, payload)
    end
  end
end
