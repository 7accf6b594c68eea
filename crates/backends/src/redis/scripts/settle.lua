-- KEYS: the list. ARGV: prefix, then five arguments a settlement. One answer each: 1, or 0 for a stale receipt.
local q = open(KEYS[1], ARGV[1])
local answers, settlements, endings, ended = {}, {}, {}, {}
for at = 2, #ARGV, SETTLEMENT do settlements[#settlements + 1] = settlement(ARGV, at) end
local records, places = held(q, settlements)
for at, one in ipairs(settlements) do
  if records[at] and not ended[one.number] then
    ended[one.number] = true
    endings[#endings + 1] = { one, records[at], places[at] }
    answers[at] = 1
  else
    answers[at] = 0
  end
end
touch_finished(q, endings)
ready({ 'HDEL', 'HGET', 'HSET', 'ZADD', 'ZRANGEBYLEX', 'ZREM' })
finish_all(q, endings)
close(q)
return answers
