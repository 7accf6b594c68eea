-- KEYS: the stream. ARGV: prefix, group, consumer, session, heartbeat timeout in ms, most entries.
-- Returns the id of the newest entry ever, and the entries.
local key, side, name, consumer = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local group = group_called(key, name)
if not group then return no_group(name) end
touch_greeted(key, side)
allow(key, 'stream', 'XREADGROUP,XACK,XINFO STREAM')
allow(side .. 'ahead:' .. name, 'hash', 'HDEL')
ready({
  'HDEL', 'HGET', 'HSET', 'XACK', 'XCLAIM', 'XGROUP DELCONSUMER', 'XINFO GROUPS', 'XINFO STREAM', 'XPENDING',
  'XREADGROUP',
})
local clock = redis.call('TIME')
greet(key, side, name, consumer, ARGV[4], clock[1] * 1000 + math.floor(clock[2] / 1000) + ARGV[5])
local ahead, kept = side .. 'ahead:' .. name, {}
local newest = fields_of(call_sub('XINFO', 'STREAM', key))['last-generated-id']
changed = true
while #kept == 0 do
  local read = redis.call('XREADGROUP', 'GROUP', name, consumer, 'COUNT', ARGV[6], 'STREAMS', key, '>')
  if not read then break end
  for _, entry in ipairs(read[1][2]) do
    if call('HDEL', ahead, entry[1]) == 1 then
      call('XACK', key, name, entry[1])
    else
      kept[#kept + 1] = entry
    end
  end
end
return { newest, handed(kept) }
