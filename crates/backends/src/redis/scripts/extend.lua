-- KEYS: the list. ARGV: prefix, lease in ms, then number and fence of each receipt. One answer each: 1, or 0 for a stale receipt.
local q = open(KEYS[1], ARGV[1])
touch(q, 'records', 'HGET')
touch(q, 'leased', 'ZSCORE', 'ZADD')
touch(q, 'returned', 'ZSCORE', 'ZREM')
ready({ 'HGET', 'HSET', 'ZADD', 'ZREM', 'ZSCORE' })
local answers = {}
for at = 3, #ARGV, 2 do
  local number = ARGV[at]
  local record = held(q, number, tonumber(ARGV[at + 1]))
  if record then
    call('ZREM', q.returned, number)
    call('ZADD', q.leased, now + tonumber(ARGV[2]), number)
  end
  answers[#answers + 1] = record and 1 or 0
end
return answers
