-- KEYS: the list. ARGV: prefix, most messages.
-- Returns the oldest first: place, attempts, id, time, blob, payload. Changes only due messages.
local q = open(KEYS[1], ARGV[1])
touch_due(q)
touch(q, 'records', 'HGET')
touch(q, 'leased', 'ZRANGE')
touch(q, 'delayed', 'ZRANGE')
touch(q, 'returned', 'ZRANGE')
touch(q, 'parked', 'ZRANGE')
touch(q, 'index', 'ZRANGEBYLEX')
touch(q, 'list', 'LRANGE')
touch(q, 'payloads', 'HGET')
ready({ 'HGET', 'HSET', 'LRANGE', 'ZADD', 'ZRANGE', 'ZRANGEBYLEX', 'ZRANGEBYSCORE', 'ZREM' })
tick(q)
local most, found = tonumber(ARGV[2]), {}
local function add(number, place, payload, record)
  record = record or record_of(q, number)
  if record then
    found[#found + 1] = { number, { place, record[ATTEMPTS], record[ID], record[AT], record[BLOB], payload or number } }
  end
end
for place, from in pairs({ leased = q.leased, delayed = q.delayed, ready = q.returned }) do
  -- By deadline: enough of them that the oldest are among them.
  local numbers = call('ZRANGE', from, 0, math.max(most, 10 * STEP) - 1)
  table.sort(numbers)
  for at = 1, math.min(#numbers, most) do add(numbers[at], place) end
end
for _, member in ipairs(call('ZRANGE', q.parked, 0, math.max(most, STEP) - 1)) do add(string.sub(member, 41), 'ready') end
local seen, last, bytes, from = {}, '', 0, 0
-- One item of the list.
local function look(payload)
  local digest = sha1(payload)
  local nth = seen[digest] or 0
  seen[digest], bytes = nth + 1, bytes + #payload
  local member = call('ZRANGEBYLEX', q.index, '[' .. digest, '(' .. digest .. ':', 'LIMIT', nth, 1)[1]
  if member then
    last = string.sub(member, 41)
    add(last, 'ready', { payload })
  else
    -- Of another program, without an id until it is leased: it sorts after the items before it in the list.
    local id = string.rep(string.char(0), 8) .. string.sub(digest, 1, 8)
    add(last, 'ready', { payload }, { id, now, 0, 0, 0, '', '', '' })
  end
end
while from < most and bytes < ENOUGH_BYTES do
  local piece = math.min(most - from, PIECE)
  local items = call('LRANGE', q.list, -from - piece, -from - 1)
  for at = #items, 1, -1 do look(items[at]) end
  from = from + piece
  if #items < piece then break end
end
for at, one in ipairs(found) do one[3] = at end
table.sort(found, function(one, other)
  if one[1] ~= other[1] then return one[1] < other[1] end
  return one[3] < other[3]
end)
local answer, told = {}, 0
for at = 1, math.min(#found, most) do
  local one = found[at][2]
  one[6] = type(one[6]) == 'table' and one[6][1] or call('HGET', q.payloads, one[6]) or ''
  told = told + #one[6]
  answer[at] = one
  if told >= ENOUGH_BYTES then break end
end
return answer
