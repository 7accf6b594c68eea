-- KEYS: the list. ARGV: prefix, lease in ms, then number and fence of each receipt. One answer each: 1, or 0 for a stale receipt.
local q = open(KEYS[1], ARGV[1])
local receipts, answers, extended, returned = {}, {}, {}, {}
for at = 3, #ARGV, 2 do receipts[#receipts + 1] = { number = ARGV[at], fence = tonumber(ARGV[at + 1]) } end
local records, places = held(q, receipts)
for at, one in ipairs(receipts) do
  answers[at] = records[at] and 1 or 0
  if records[at] then
    extended[#extended + 1] = now + tonumber(ARGV[2])
    extended[#extended + 1] = one.number
    if places[at] == q.returned then returned[#returned + 1] = one.number end
  end
end
touch(q, 'leased', 'ZADD')
if #returned > 0 then touch(q, 'returned', 'ZREM') end
ready({ 'HSET', 'ZADD', 'ZREM' })
call_all('ZREM', q.returned, returned)
call_all('ZADD', q.leased, extended)
return answers
