-- Returns deliveries of ended consumers, and restores the list of a queue without consumers.

local function touch_return_leases(q)
  touch(q, 'leased', 'ZRANGE,ZREM')
  touch(q, 'records', 'HGET,HSET')
  touch(q, 'returned', 'ZADD')
end

-- Voids the leases of consumers that match `gone`. Returns their number.
local function return_leases(q, gone)
  local found = 0
  local numbers = call('ZRANGE', q.leased, 0, -1)
  for _, number in ipairs(numbers) do
    local record = record_of(q, number)
    if record and gone(record[CONSUMER]) then
      record[FENCE], record[CONSUMER] = 0, ''
      keep(q, number, record)
      call('ZREM', q.leased, number)
      return_message(q, number)
      found = found + 1
    end
  end
  return found
end

local function touch_restore_list(q)
  touch(q, 'returned', 'ZREVRANGE,ZREM')
  touch(q, 'parked', 'ZRANGE,ZREM')
  touch(q, 'records', 'HGET,HSET')
  touch(q, 'payloads', 'HGET,HDEL')
  touch(q, 'keys', 'HGET,HDEL')
  touch(q, 'index', 'ZADD')
  touch(q, 'list', 'RPUSH')
end

-- Moves messages from the side sets back into the list, oldest to be popped first, because only
-- a bare BRPOP may be left to take them. The newest go first, so a step may be cut short.
local function restore_list(q)
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
