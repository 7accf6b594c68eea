-- Shared by all scripts on queues: keys, clock, records and moves.
--
-- A ready message is its bare payload in the list that has the queue's own
-- name. Its metadata is a record under its number; `index` leads
-- from a payload's digest to the numbers of those that wait in the list, so an
-- item pushed by another program is one without a number. A message
-- that has left the list keeps its payload in `payloads`.
--
-- A number is the server's time in microseconds, or one more than the last:
-- it grows with every arrival also when the server lost its last second.

local sha1 = redis.sha1hex
local clock = redis.call('TIME')
local now_us = clock[1] * 1000000 + clock[2]
local now = math.floor(now_us / 1000)

-- Most messages moved by one step, so that no script blocks the server for long.
local STEP = 1000

-- Fields of a record.
-- SETTLED: attempts up to the last one with an outcome; absent until a message is first leased.
-- LEASED: when the last lease began; absent until then, and in records of earlier releases.
local ID, AT, ATTEMPTS, FENCE, EXPIRES, KEY, BLOB, CONSUMER, SETTLED, LEASED = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10

-- Exact up to 2^53, where `tostring` rounds.
local function text(number) return string.format('%.0f', number) end

-- Side keys are built on demand: most scripts need few.
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
    if value and (#value > 16 or not tonumber(value)) then refuse('NOTANUMBER', field, queue) end
  end
end

local function open(list, side)
  local queue = side .. 'queue'
  local known = read_key('hash', 'HMGET', queue, 'ticket', 'attempts', 'dedup_ms', 'enqueued', 'acked', 'retried', 'dropped',
    'duplicates', 'paused', 'max_depth')
  name_key(queue, 'HSET')
  check_numbers(queue, known)
  return setmetatable({
    list = list, side = side, queue = queue, known = known,
    ticket = tonumber(known[1] or 0), attempts = tonumber(known[2] or DEFAULT_ATTEMPTS),
    dedup_ms = tonumber(known[3] or DEFAULT_DEDUP_MS), max_depth = tonumber(known[10] or nil) or false,
    paused = known[9] == '1', counts = {}, firsts = {}, ticket_moved = false, planned = false,
  }, beside)
end

local HASHES = { records = true, payloads = true, errors = true, keys = true, dead_ids = true, consumers = true }

-- Names commands on one of the queue's keys, before the first change.
local function touch(q, name, commands)
  allow(q[name], HASHES[name] and 'hash' or name == 'list' and 'list' or 'zset', commands)
end

-- A new unique number, for arrivals and fences.
local function next_ticket(q)
  q.ticket = math.max(q.ticket + 1, now_us)
  q.ticket_moved = true
  return q.ticket
end

local function count(q, name, by) q.counts[name] = (q.counts[name] or 0) + by end

-- Writes the counters.
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

local function depth(q)
  return call('LLEN', q.list) + call('ZCARD', q.returned) + call('ZCARD', q.parked)
    + call('ZCARD', q.delayed) + call('ZCARD', q.leased)
end
