-- Maintenance of a queue: heartbeats, deliveries of dead consumers, due messages, items popped by other programs.
-- KEYS: the list. ARGV: prefix, heartbeat timeout in ms, session, consumers of this process.
-- Returns the number of ready messages.
local q = open(KEYS[1], ARGV[1])
local timeout, session = tonumber(ARGV[2]), ARGV[3]

name_key(q.queue, 'HGET')
touch(q, 'consumers', 'HGET,HSET,HGETALL,HDEL')
touch_due(q)
touch_return_leases(q)
touch_restore_list(q)
touch_forgotten(q)
touch(q, 'list', 'LLEN,LRANGE')
touch(q, 'index', 'ZCARD,ZRANGE,ZREVRANGE,ZREM')
touch(q, 'returned', 'ZCARD')
ready({
  'HDEL', 'HGET', 'HGETALL', 'HSET', 'LLEN', 'LRANGE', 'RPUSH', 'ZADD', 'ZCARD', 'ZRANGE', 'ZRANGEBYLEX',
  'ZRANGEBYSCORE', 'ZREM', 'ZREVRANGE',
})

-- When no process ran maintenance for half a timeout, heartbeats may be missing: every consumer gets one more timeout.
local last = tonumber(call('HGET', q.queue, 'tended') or now) or now
call('HSET', q.queue, 'tended', text(now))
local stalled = now - last >= timeout / 2

for at = 4, #ARGV do
  local known = call('HGET', q.consumers, ARGV[at])
  if not known or string.sub(known, 14) == session then
    call('HSET', q.consumers, ARGV[at], text(now + timeout) .. session)
  end
end
local alive, gone, any = 0, {}, false
local all = call('HGETALL', q.consumers)
for at = 1, #all, 2 do
  local until_ms, who = tonumber(string.sub(all[at + 1], 1, 13)) or 0, string.sub(all[at + 1], 14)
  if until_ms <= now and stalled then
    call('HSET', q.consumers, all[at], text(now + timeout) .. who)
    alive = alive + 1
  elseif until_ms <= now then
    call('HDEL', q.consumers, all[at])
    gone[all[at]], any = true, true
  else
    alive = alive + 1
  end
end
tick(q)
if any then return_leases(q, function(who) return gone[who] end) end
if alive == 0 then restore_list(q) end

-- Items in the index and not in the list were popped by another program: counted as done.
local length, indexed = call('LLEN', q.list), call('ZCARD', q.index)
local orphans = {}
if length == 0 and indexed > 0 then
  orphans = call('ZRANGE', q.index, 0, STEP - 1)
elseif indexed - length > STEP and length <= 10 * STEP then
  local there = {}
  for _, payload in ipairs(call('LRANGE', q.list, 0, -1)) do
    local digest = sha1(payload)
    there[digest] = (there[digest] or 0) + 1
  end
  -- Of equal payloads the newest are still there.
  for _, member in ipairs(call('ZREVRANGE', q.index, 0, 20 * STEP)) do
    local digest = string.sub(member, 1, 40)
    if (there[digest] or 0) > 0 then
      there[digest] = there[digest] - 1
    else
      orphans[#orphans + 1] = member
    end
  end
end
for _, member in ipairs(orphans) do
  local number = string.sub(member, 41)
  local record = record_of(q, number)
  call('ZREM', q.index, member)
  if record then
    forget(q, number, record)
    count(q, 'acked', 1)
  end
end
close(q)
return call('LLEN', q.list) + call('ZCARD', q.returned)
