-- KEYS: the stream. ARGV: prefix, group, ids.
local group = group_called(KEYS[1], ARGV[2])
if not group then return no_group(ARGV[2]) end
touch_finished_entries(KEYS[1], ARGV[1], ARGV[2])
ready({ 'HDEL', 'HGET', 'HLEN', 'HSET', 'XACK', 'XGROUP SETID', 'XINFO GROUPS', 'XPENDING', 'XRANGE', 'XREVRANGE' })
local ids = {}
for at = 3, #ARGV do ids[#ids + 1] = ARGV[at] end
finish_entries(KEYS[1], ARGV[1], group, ids)
return 0
