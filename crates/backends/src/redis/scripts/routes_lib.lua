-- Routing keys and patterns; a binding is the queue's name, a zero byte, and the pattern.

local function words(text_)
  local list = {}
  for word in string.gmatch(text_ .. '.', '([^.]*)%.') do list[#list + 1] = word end
  return list
end

-- Whether a routing key matches a pattern, by the rules of AMQP 0-9-1 topic exchanges.
local function matches(pattern, key)
  local reachable = { [0] = true }
  for _, word in ipairs(words(pattern)) do
    local following, open_end = {}, false
    if word == '#' then
      for at = 0, #key do
        open_end = open_end or reachable[at] or false
        following[at] = open_end
      end
    else
      for at, key_word in ipairs(key) do
        following[at] = reachable[at - 1] and (word == '*' or word == key_word) or false
      end
    end
    reachable = following
  end
  return reachable[#key] or false
end

-- The names of the queues that match the routing key, each once, in order.
local function destinations(bindings, routing_key)
  local key, seen, names = words(routing_key), {}, {}
  allow(bindings, 'set', 'SMEMBERS')
  for _, binding in ipairs(call('SMEMBERS', bindings)) do
    local zero = string.find(binding, '\0', 1, true)
    local name = string.sub(binding, 1, zero - 1)
    if not seen[name] and matches(string.sub(binding, zero + 1), key) then
      seen[name] = true
      names[#names + 1] = name
    end
  end
  table.sort(names)
  return names
end

-- Queues by name, each opened once. `namespace` is {prefix of lists, before and after a name in the keys beside it}.
local function opener(namespace)
  local opened = {}
  return function(name)
    if not opened[name] then
      opened[name] = open(namespace[1] .. name, namespace[2] .. name .. namespace[3])
    end
    return opened[name]
  end, opened
end

-- Free depth of the queue.
local function room_in(q)
  if not q.max_depth then return math.huge end
  if not q.planned then q.planned = depth(q) end
  return q.max_depth - q.planned
end
