-- KEYS: the stream. ARGV: prefix, `create`, `seek` or `delete`, group, where to start: an id, 0 or $.
local key, side, what, name, start = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local group = group_called(key, name)
if what == 'create' and group then return 0 end
if what == 'seek' and not group then return no_group(name) end
local committed, ahead = side .. 'committed', side .. 'ahead:' .. name
allow(key, 'stream', 'XGROUP DESTROY,XGROUP CREATE,XINFO GROUPS')
allow(committed, 'hash', 'HDEL,HSET')
allow(ahead, 'hash', 'DEL')
ready({ 'DEL', 'HDEL', 'HSET', 'XGROUP CREATE', 'XGROUP DESTROY', 'XINFO GROUPS' })
if group then call_sub('XGROUP', 'DESTROY', key, name) end
call('HDEL', committed, name)
call('DEL', ahead)
if what == 'delete' then return 0 end
call_sub('XGROUP', 'CREATE', key, name, start, 'MKSTREAM')
local position = group_called(key, name)['last-delivered-id']
if position ~= '0-0' then call('HSET', committed, name, position) end
return 0
