-- What consumers that ended held, and a queue that no consumer of ours reads.

local function touch_taken_back(q)
  touch(q, 'leased', 'ZRANGE,ZREM')
  touch(q, 'records', 'HGET,HSET')
  touch(q, 'returned', 'ZADD')
end

-- Voids the leases of consumers for which `gone` says so. Returns how many.
local function take_back(q, gone)
  local found = 0
  local numbers = call('ZRANGE', q.leased, 0, -1)
  for _, number in ipairs(numbers) do
    local record = record_of(q, number)
    if record and gone(record[CONSUMER]) then
      record[FENCE], record[CONSUMER] = 0, ''
      keep(q, number, record)
      call('ZREM', q.leased, number)
      give_back(q, number)
      found = found + 1
    end
  end
  return found
end

local function touch_refilled(q)
  touch(q, 'returned', 'ZREVRANGE,ZREM')
  touch(q, 'parked', 'ZRANGE,ZREM')
  touch(q, 'records', 'HGET,HSET')
  touch(q, 'payloads', 'HGET,HDEL')
  touch(q, 'keys', 'HGET,HDEL')
  touch(q, 'index', 'ZADD')
  touch(q, 'list', 'RPUSH')
end

-- Puts what waits beside the list back into it, oldest to be popped first, because nobody
-- but a bare BRPOP may be left to take it. The newest go first, so a step may be cut short.
local function refill(q)
  local numbers = call('ZREVRANGE', q.returned, 0, STEP - 1)
  for _, member in ipairs(call('ZRANGE', q.parked, 0, STEP - 1)) do
    numbers[#numbers + 1] = string.sub(member, 41)
    call('ZREM', q.parked, member)
  end
  table.sort(numbers, function(one, other) return one > other end)
  for _, number in ipairs(numbers) do
    local record, payload = record_of(q, number), call('HGET', q.payloads, number)
    call('ZREM', q.returned, number)
    if record and payload then
      if record[KEY] ~= '' and call('HGET', q.keys, record[KEY]) == number then
        call('HDEL', q.keys, record[KEY])
      end
      record[FENCE], record[CONSUMER] = 0, ''
      keep(q, number, record)
      call('HDEL', q.payloads, number)
      call('ZADD', q.index, 0, sha1(payload) .. number)
      call('RPUSH', q.list, payload)
    end
  end
end
