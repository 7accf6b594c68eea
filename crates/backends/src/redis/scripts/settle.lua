-- KEYS: the list. ARGV: prefix, then five arguments a settlement. One answer each: 1, or 0 for a stale receipt.
local q = open(KEYS[1], ARGV[1])
local answers, endings, ended = {}, {}, {}
for at = 2, #ARGV, SETTLEMENT do
  local one = settlement(ARGV, at)
  local record, place = held(q, one.number, one.fence)
  if record and not ended[one.number] then
    ended[one.number] = true
    endings[#endings + 1] = { one, record, place }
    touch_finished(q, one, record)
    answers[#answers + 1] = 1
  else
    answers[#answers + 1] = 0
  end
end
ready({ 'HDEL', 'HGET', 'HSET', 'ZADD', 'ZRANGEBYLEX', 'ZREM' })
for _, one in ipairs(endings) do finish(q, one[1], one[2], one[3]) end
close(q)
return answers
