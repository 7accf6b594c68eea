-- KEYS: the list. ARGV: prefix, most items of the list, greatest number (of those beside it; empty in the first step).
-- Drops one step of messages. Returns dropped, items that were in the list, the greatest number to pass on.
local q = open(KEYS[1], ARGV[1])
touch_due(q)
touch_forgotten(q)
touch(q, 'list', 'LLEN,RPOP')
touch(q, 'delayed', 'ZRANGE')
touch(q, 'returned', 'ZRANGE,ZREM')
touch(q, 'parked', 'ZRANGE')
touch(q, 'index', 'ZRANGEBYLEX,ZREM')
ready({ 'HDEL', 'HGET', 'HSET', 'LLEN', 'RPOP', 'ZADD', 'ZRANGE', 'ZRANGEBYLEX', 'ZRANGEBYSCORE', 'ZREM' })
tick(q)
local length = call('LLEN', q.list)
local newest = ARGV[3] ~= '' and ARGV[3] or text(math.max(q.ticket, now_us))
local dropped, from_list = 0, 0
local function drop(number)
  local record = record_of(q, number)
  if record then
    forget(q, number, record)
    dropped = dropped + 1
  end
end
for _, from in ipairs({ q.delayed, q.returned, q.parked }) do
  for _, member in ipairs(call('ZRANGE', from, 0, STEP - 1)) do
    local number = string.sub(member, -16)
    if number <= newest then
      call('ZREM', from, member)
      drop(number)
    end
  end
end
local most = math.min(ARGV[2] ~= '' and tonumber(ARGV[2]) or length, STEP, length)
if most > 0 then
  for _, payload in ipairs(call('RPOP', q.list, most)) do
    from_list = from_list + 1
    local number = unindex(q, payload)
    if number then
      drop(number)
    else
      count(q, 'enqueued', 1)
      dropped = dropped + 1
    end
  end
end
count(q, 'dropped', dropped)
close(q)
return { dropped, from_list, length, newest }
