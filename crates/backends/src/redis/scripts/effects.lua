-- Applies a transaction completely or not at all: checks everything, then writes everything.
-- KEYS: the keys it touches. ARGV: the three parts of queue keys; then counted lists: kv ops, settlements (queue name
-- and five), messages (queue name and seven), publications (key of bindings, routing key and seven), entries (key,
-- prefix, field, window and three), finished entries (key, prefix, group, id).
-- Returns `applied` with the values, or the reason of the refusal.
local queue_called, opened = opener({ ARGV[1], ARGV[2], ARGV[3] })
local at = 4
local function section(width)
  local from, entries = at + 1, tonumber(ARGV[at])
  at = from + entries * width
  return from, at - 1
end

local from, to = section(OP)
local draft, values = plan(ARGV, from, to)
if not draft then return values end

local endings, ended = {}, {}
from, to = section(SETTLEMENT + 1)
for here = from, to, SETTLEMENT + 1 do
  local name, one = ARGV[here], settlement(ARGV, here + 1)
  local records, places = held(queue_called(name), { one })
  if not records[1] or ended[name .. ' ' .. one.number] then return { 'stale', name, one.number } end
  ended[name .. ' ' .. one.number] = true
  endings[name] = endings[name] or {}
  table.insert(endings[name], { one, records[1], places[1] })
end

local arrivals = {}
-- Plans one message for a queue; false when it is full.
local function bring(name, message)
  local q = queue_called(name)
  if not first_of(q, message) then
    if room_in(q) <= 0 then return false end
    if q.planned then q.planned = q.planned + 1 end
  end
  arrivals[name] = arrivals[name] or {}
  table.insert(arrivals[name], message)
  return true
end
from, to = section(ARRIVAL + 1)
for here = from, to, ARRIVAL + 1 do
  if not bring(ARGV[here], arrival(ARGV, here + 1)) then return { 'full', ARGV[here] } end
end
from, to = section(ARRIVAL + 2)
for here = from, to, ARRIVAL + 2 do
  local names = destinations(ARGV[here], ARGV[here + 1])
  if #names == 0 then return { 'unroutable', (here - from) / (ARRIVAL + 2) } end
  for _, name in ipairs(names) do
    if not bring(name, arrival(ARGV, here + 2)) then return { 'full', name } end
  end
end

local entries_from, entries_to = section(7)
local finished = {}
from, to = section(4)
for here = from, to, 4 do
  local key, side, name = ARGV[here], ARGV[here + 1], ARGV[here + 2]
  finished[key .. ' ' .. name] = finished[key .. ' ' .. name] or { key = key, side = side, name = name, ids = {} }
  table.insert(finished[key .. ' ' .. name].ids, ARGV[here + 3])
  finished[key .. ' ' .. name].group = group_called(key, name)
  if not finished[key .. ' ' .. name].group then return no_group(name) end
end

touch_draft(draft)
for here = entries_from, entries_to, 7 do touch_appended(ARGV[here], ARGV[here + 1], ARGV[here + 6]) end
for _, one in pairs(finished) do touch_finished_entries(one.key, one.side, one.name) end
for name, these in pairs(endings) do touch_finished(queue_called(name), these) end
for to, messages in pairs(arrivals) do touch_arrivals(queue_called(to), messages) end
ready({
  'DEL', 'GET', 'HDEL', 'HGET', 'HLEN', 'HSET', 'LLEN', 'LPUSH', 'PERSIST', 'PEXPIRE', 'SET', 'SMEMBERS', 'XACK',
  'XADD', 'XGROUP SETID', 'XINFO GROUPS', 'XINFO STREAM', 'XPENDING', 'XRANGE', 'XREVRANGE', 'ZADD', 'ZCARD',
  'ZRANGEBYLEX', 'ZREM',
})

write(draft)
for here = entries_from, entries_to, 7 do append_entry(unpack(ARGV, here, here + 6)) end
for _, one in pairs(finished) do finish_entries(one.key, one.side, one.group, one.ids) end
for name, these in pairs(endings) do finish_all(queue_called(name), these) end
for name, messages in pairs(arrivals) do take_in(queue_called(name), messages) end
for _, q in pairs(opened) do close(q) end
return { 'applied', values }
