-- Due messages.

local function touch_due(q)
  touch(q, 'delayed', 'ZRANGEBYSCORE,ZREM')
  touch(q, 'leased', 'ZRANGEBYSCORE,ZREM')
  touch(q, 'returned', 'ZADD')
end

-- The numbers of due messages, by set; nothing when there are none.
local function due(q)
  local found, any = {}, false
  for _, from in ipairs({ q.delayed, q.leased }) do
    found[from] = read_key('zset', 'ZRANGEBYSCORE', from, '-inf', now, 'LIMIT', 0, STEP)
    any = any or #found[from] > 0
  end
  return any and found
end

-- Due messages become ready; messages with an expired lease too, attempt counted and
-- receipt valid until the next lease.
local function tick(q, found)
  for from, numbers in pairs(found or due(q) or {}) do
    call_all('ZREM', from, numbers)
    for _, number in ipairs(numbers) do return_message(q, number) end
  end
end
