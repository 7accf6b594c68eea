-- Records of messages.

local function unpacked(packed)
  local r = cmsgpack.unpack(packed)
  -- An error when one is missing or of another type.
  return r, r[AT] + r[ATTEMPTS] + r[FENCE] + r[EXPIRES] + (r[SETTLED] or 0) + #r[ID] + #r[KEY] + #r[BLOB]
end

-- Nothing for an unreadable record: an error would end the script between two changes.
local function unpacked_or_nil(packed)
  if not packed then return nil end
  local ok, record = pcall(unpacked, packed)
  return ok and record or nil
end

local function record_of(q, number) return unpacked_or_nil(call('HGET', q.records, number)) end

local function keep(q, number, record) call('HSET', q.records, number, cmsgpack.pack(record)) end

-- Makes a message ready, before the list.
local function return_message(q, number) call('ZADD', q.returned, 0, number) end

local function touch_key(q)
  touch(q, 'keys', 'HGET,HDEL')
  touch(q, 'parked', 'ZRANGEBYLEX,ZREM')
  touch(q, 'returned', 'ZADD')
end

-- Unlocks the next message of the key, when this one holds the lock.
local function free_key(q, number, record)
  local key = record[KEY]
  if key == '' or call('HGET', q.keys, key) ~= number then return end
  call('HDEL', q.keys, key)
  local parked = call('ZRANGEBYLEX', q.parked, '[' .. key, '(' .. key .. ':', 'LIMIT', 0, 1)[1]
  if parked then
    call('ZREM', q.parked, parked)
    return_message(q, string.sub(parked, #key + 1))
  end
end

-- Keys of one record, or of any.
local function touch_forgotten(q, record)
  touch(q, 'records', 'HGET,HDEL')
  touch(q, 'payloads', 'HDEL')
  if not record or record[ATTEMPTS] > 0 then touch(q, 'errors', 'HDEL') end
  if not record or record[KEY] ~= '' then touch_key(q) end
end

-- Deletes a message that is in no list or set.
local function forget(q, number, record)
  call('HDEL', q.records, number)
  call('HDEL', q.payloads, number)
  if record[ATTEMPTS] > 0 then call('HDEL', q.errors, number) end
  free_key(q, number, record)
end
