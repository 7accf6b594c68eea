-- Maintenance of a stream: heartbeats, entries of dead consumers. KEYS: the stream. ARGV: prefix, heartbeat timeout in ms, session, consumers of this process.
-- Returns the last id of the stream, nothing when it does not exist, and the groups whose position is past it.
local key, readers, timeout, session = KEYS[1], ARGV[1] .. 'readers', tonumber(ARGV[2]), ARGV[3]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local function alive(session_) return string.format('%.0f', now + timeout) .. session_ end
-- When no process ran maintenance for half a timeout, heartbeats may be missing: every consumer gets one more timeout.
local tended = ARGV[1] .. 'tended'
allow(readers, 'hash', 'HGET,HSET,HGETALL,HDEL')
allow(tended, 'string', 'GET,SET')
touch_release_pending(key)
allow(key, 'stream', 'XINFO STREAM')
local last, beyond = '', {}
if redis.call('EXISTS', key) == 1 then last = fields_of(call_sub('XINFO', 'STREAM', key))['last-generated-id'] end
local groups = groups_of(key)
ready({
  'GET', 'HDEL', 'HGET', 'HGETALL', 'HSET', 'SET', 'XACK', 'XCLAIM', 'XGROUP DELCONSUMER', 'XINFO GROUPS',
  'XINFO STREAM', 'XPENDING',
})
local stalled = now - (tonumber(call('GET', tended) or now) or now) >= timeout / 2
call('SET', tended, string.format('%.0f', now))
for at = 4, #ARGV do
  local known = call('HGET', readers, ARGV[at])
  if not known or string.sub(known, 14) == session then call('HSET', readers, ARGV[at], alive(session)) end
end
local all = call('HGETALL', readers)
for at = 1, #all, 2 do
  if (tonumber(string.sub(all[at + 1], 1, 13)) or 0) <= now then
    if stalled then
      call('HSET', readers, all[at], alive(string.sub(all[at + 1], 14)))
    else
      call('HDEL', readers, all[at])
      for _, group in ipairs(groups) do release_pending(key, group.name, all[at]) end
    end
  end
end
for _, group in ipairs(groups) do
  if before(last, group['last-delivered-id']) then beyond[#beyond + 1] = group.name end
end
return { last, beyond }
