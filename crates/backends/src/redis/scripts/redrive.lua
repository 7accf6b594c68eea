-- One step of redriving or dropping dead letters.
-- KEYS: the list. ARGV: prefix, `redrive` or `drop`, greatest number (for all; empty in the first step), then ids (for some).
-- Returns the number moved, the greatest number to pass on, and whether there may be more.
local q = open(KEYS[1], ARGV[1])
touch(q, 'dead', 'ZRANGEBYLEX,ZREM')
touch(q, 'dead_ids', 'HGET,HDEL')
touch(q, 'errors', 'HDEL')
touch(q, 'records', 'HGET,HDEL,HSET')
touch(q, 'payloads', 'HGET,HDEL')
touch(q, 'index', 'ZADD')
touch(q, 'list', 'LPUSH')
ready({ 'HDEL', 'HGET', 'HSET', 'LPUSH', 'ZADD', 'ZRANGEBYLEX', 'ZREM' })
local redrive, newest = ARGV[2] == 'redrive', ARGV[3]
if newest == '' then newest = text(math.max(q.ticket, now_us)) end
local numbers = {}
if #ARGV > 3 then
  for at = 4, #ARGV do
    local number = call('HGET', q.dead_ids, ARGV[at])
    if number then numbers[#numbers + 1] = number end
  end
else
  numbers = call('ZRANGEBYLEX', q.dead, '-', '[' .. newest, 'LIMIT', 0, STEP)
end
local moved = 0
for _, number in ipairs(numbers) do
  local record, payload = record_of(q, number), call('HGET', q.payloads, number)
  if call('ZREM', q.dead, number) == 1 and record then
    moved = moved + 1
    call('HDEL', q.dead_ids, record[ID])
    call('HDEL', q.errors, number)
    call('HDEL', q.records, number)
    call('HDEL', q.payloads, number)
    if redrive and payload then
      local again = text(next_ticket(q))
      record[ATTEMPTS], record[EXPIRES] = 0, 0
      keep(q, again, record)
      call('ZADD', q.index, 0, sha1(payload) .. again)
      call('LPUSH', q.list, payload)
    end
  end
end
if not redrive then count(q, 'dropped', moved) end
close(q)
return { moved, newest, #ARGV == 3 and #numbers == STEP and 1 or 0 }
