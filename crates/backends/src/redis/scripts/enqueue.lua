-- KEYS: the list. ARGV: prefix of the keys beside it, then seven arguments a message.
local q = open(KEYS[1], ARGV[1])
local messages = {}
for at = 2, #ARGV, ARRIVAL do messages[#messages + 1] = arrival(ARGV, at) end
touch_arrivals(q, messages)
ready({ 'HSET', 'LLEN', 'LPUSH', 'SET', 'ZADD', 'ZCARD' })
local answers = take_in(q, messages)
close(q)
return answers
