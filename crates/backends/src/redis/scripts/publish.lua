-- KEYS: bindings of the exchange. ARGV: the three parts of queue keys, then eight arguments a publication: routing key and message.
-- One answer each: number of queues, 0 for no route, or the name of a queue that is full.
local queue_called, opened = opener({ ARGV[1], ARGV[2], ARGV[3] })
local answers, arrivals = {}, {}
for at = 4, #ARGV, ARRIVAL + 1 do
  local names, message, full = destinations(KEYS[1], ARGV[at]), arrival(ARGV, at + 1), nil
  for _, name in ipairs(names) do
    local q = queue_called(name)
    -- A duplicate takes no room.
    if not first_of(q, message) and room_in(q) <= 0 then full = name end
  end
  if full then
    answers[#answers + 1] = full
  else
    for _, name in ipairs(names) do
      local q = queue_called(name)
      if q.planned and not first_of(q, message) then q.planned = q.planned + 1 end
      arrivals[name] = arrivals[name] or {}
      table.insert(arrivals[name], message)
    end
    answers[#answers + 1] = #names
  end
end
for to, messages in pairs(arrivals) do touch_arrivals(queue_called(to), messages) end
ready({ 'HSET', 'LLEN', 'LPUSH', 'SET', 'SMEMBERS', 'ZADD', 'ZCARD' })
for to, messages in pairs(arrivals) do take_in(queue_called(to), messages) end
for _, q in pairs(opened) do close(q) end
return answers
