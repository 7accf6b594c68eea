-- KEYS: the stream. ARGV: prefix, `create`, `seek` or `delete`, group, where to start: an id, 0 or $.
local key, side, what, name, start = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local group = group_called(key, name)
if what == 'create' and group then return 0 end
if what == 'seek' and not group then return no_group(name) end
if group then call('XGROUP', 'DESTROY', key, name) end
call('HDEL', side .. 'committed', name)
call('DEL', side .. 'ahead:' .. name)
if what == 'delete' then return 0 end
call('XGROUP', 'CREATE', key, name, start, 'MKSTREAM')
local position = group_called(key, name)['last-delivered-id']
if position ~= '0-0' then call('HSET', side .. 'committed', name, position) end
return 0
