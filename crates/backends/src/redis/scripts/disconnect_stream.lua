-- KEYS: the stream. ARGV: prefix, consumer, session or nothing for any. Returns the number of entries released.
allow(ARGV[1] .. 'readers', 'hash', 'HGET,HDEL')
touch_release_pending(KEYS[1])
local groups = groups_of(KEYS[1])
ready({ 'HDEL', 'HGET', 'XACK', 'XCLAIM', 'XGROUP DELCONSUMER', 'XINFO GROUPS', 'XPENDING' })
local known = call('HGET', ARGV[1] .. 'readers', ARGV[2])
if ARGV[3] ~= '' and known and string.sub(known, 14) ~= ARGV[3] then return 0 end
call('HDEL', ARGV[1] .. 'readers', ARGV[2])
local count = 0
for _, group in ipairs(groups) do count = count + release_pending(KEYS[1], group.name, ARGV[2]) end
return count
