-- KEYS: the list. ARGV: prefix, then five arguments a settlement. One answer each: 1, or 0 for a stale receipt.
local q = open(KEYS[1], ARGV[1])
touch_finished(q)
local answers = {}
for at = 2, #ARGV, SETTLEMENT do
  local one = settlement(ARGV, at)
  local record, place = held(q, one.number, one.fence)
  if record then finish(q, one, record, place) end
  answers[#answers + 1] = record and 1 or 0
end
close(q)
return answers
