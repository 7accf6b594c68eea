-- KEYS: the stream. ARGV: prefix, group, consumer, session, heartbeat timeout in ms, least time held in ms, most entries.
local key, side, name, consumer, most = KEYS[1], ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[7])
if not group_called(key, name) then return no_group(name) end
touch_greeted(key, side)
ready({ 'HGET', 'HSET', 'XACK', 'XCLAIM', 'XGROUP DELCONSUMER', 'XINFO GROUPS', 'XPENDING' })
local clock = redis.call('TIME')
greet(key, side, name, consumer, ARGV[4], clock[1] * 1000 + math.floor(clock[2] / 1000) + ARGV[5])
local found, times, listed = {}, {}, {}
local function add(one)
  if not times[one[1]] then
    times[one[1]] = one[4] + 1
    found[#found + 1] = one[1]
  end
end
for _, one in ipairs(call('XPENDING', key, name, '-', '+', most, GONE)) do add(one) end
local from, others = '-', 0
repeat
  listed = call('XPENDING', key, name, 'IDLE', ARGV[6], from, '+', PAGE)
  for _, one in ipairs(listed) do
    from = '(' .. one[1]
    if one[2] ~= consumer and one[2] ~= GONE and others < most then
      add(one)
      others = others + 1
    end
  end
until #listed < PAGE or others >= most
table.sort(found, before)
local ids = {}
for at = 1, math.min(#found, most) do ids[at] = found[at] end
if #ids == 0 then return {} end
local entries, there = {}, {}
for at = 1, #ids, PAGE do
  for _, entry in ipairs(call('XCLAIM', key, name, consumer, 0, unpack(ids, at, math.min(at + PAGE - 1, #ids)))) do
    if entry then
      entries[#entries + 1] = entry
      there[entry[1]] = true
    end
  end
end
for _, id in ipairs(ids) do if not there[id] then call('XACK', key, name, id) end end
return handed(entries, times)
