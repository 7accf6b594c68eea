-- KEYS: the list. ARGV: prefix. Returns nothing for a missing queue, or
-- ready, delayed, leased, dead, enqueued, acked, retried, dropped, duplicates, age of the oldest, of the oldest that is ready, of the longest lease and of the oldest that is delayed in ms (-1: none), consumers, paused.
local q = open(KEYS[1], ARGV[1])
if redis.call('EXISTS', q.list, q.queue, q.consumers) == 0 then return false end
touch_due(q)
touch(q, 'list', 'LLEN,LINDEX')
touch(q, 'index', 'ZCARD,ZRANGEBYLEX')
touch(q, 'records', 'HGET')
touch(q, 'returned', 'ZRANGE,ZCARD')
touch(q, 'leased', 'ZRANGE,ZCARD')
touch(q, 'delayed', 'ZRANGE,ZCARD')
touch(q, 'parked', 'ZRANGE,ZCARD')
touch(q, 'dead', 'ZCARD')
touch(q, 'consumers', 'HLEN')
name_key(q.queue, 'HMGET')
ready({
  'HGET', 'HLEN', 'HMGET', 'HSET', 'LINDEX', 'LLEN', 'ZADD', 'ZCARD', 'ZRANGE', 'ZRANGEBYLEX', 'ZRANGEBYSCORE',
  'ZREM',
})
tick(q)
local length, indexed = call('LLEN', q.list), call('ZCARD', q.index)
local counts = call('HMGET', q.queue, 'enqueued', 'acked', 'retried', 'dropped', 'duplicates')
for at = 1, 5 do counts[at] = tonumber(counts[at] or 0) end
-- Pushed by another program and not seen yet, or popped by one.
local unseen = length - indexed
counts[1] = counts[1] + math.max(unseen, 0)
counts[2] = counts[2] + math.max(-unseen, 0)

-- Leases whose begin is compared.
local LOOKED_AT = 250

local oldest, oldest_ready, leased_since, oldest_delayed
local function look(number, is_ready)
  local record = number and record_of(q, number)
  if not record then return end
  if not oldest or record[AT] < oldest then oldest = record[AT] end
  if is_ready and (not oldest_ready or record[AT] < oldest_ready) then oldest_ready = record[AT] end
end
look(call('ZRANGE', q.returned, 0, 0)[1], true)
-- By deadline, so among very many this is the age of one of the oldest.
local held = call('ZRANGE', q.leased, 0, STEP - 1)
for at = 1, math.min(#held, LOOKED_AT) do
  local record = record_of(q, held[at])
  local since = record and record[LEASED]
  if since and (not leased_since or since < leased_since) then leased_since = since end
end
local delayed = call('ZRANGE', q.delayed, 0, STEP - 1)
for _, numbers in ipairs({ held, delayed }) do
  table.sort(numbers)
  look(numbers[1])
end
local waits = delayed[1] and record_of(q, delayed[1])
oldest_delayed = waits and waits[AT]
for _, member in ipairs(call('ZRANGE', q.parked, 0, STEP - 1)) do look(string.sub(member, 41)) end
local tail = call('LINDEX', q.list, -1)
if tail then
  local digest = sha1(tail)
  local member = call('ZRANGEBYLEX', q.index, '[' .. digest, '(' .. digest .. ':', 'LIMIT', 0, 1)[1]
  if member then
    look(string.sub(member, 41), true)
  else
    oldest, oldest_ready = oldest or now, oldest_ready or now
  end
end
return {
  length + call('ZCARD', q.returned) + call('ZCARD', q.parked), call('ZCARD', q.delayed),
  call('ZCARD', q.leased), call('ZCARD', q.dead), counts[1], counts[2], counts[3], counts[4], counts[5],
  oldest and now - oldest or -1, oldest_ready and now - oldest_ready or -1, leased_since and now - leased_since or -1,
  oldest_delayed and now - oldest_delayed or -1, call('HLEN', q.consumers), q.paused and 1 or 0,
}
