-- Dead letters and error history.

-- Number of errors kept, and the length of each.
local HISTORY, HISTORY_BYTES = 10, 1024

local function errors_of(q, number)
  local packed = call('HGET', q.errors, number)
  local ok, errors = false, nil
  if packed then ok, errors = pcall(cmsgpack.unpack, packed) end
  return ok and type(errors) == 'table' and type(errors.history) == 'table' and errors or { history = {} }
end

local function touch_buried(q)
  touch(q, 'errors', 'HGET,HSET')
  touch(q, 'dead', 'ZADD')
  touch(q, 'dead_ids', 'HSET')
  touch(q, 'records', 'HGET,HSET')
  touch_key(q)
end

local function bury(q, number, record, reason)
  local errors = errors_of(q, number)
  errors.reason, errors.died_at = string.sub(reason, 1, HISTORY_BYTES), now
  call('HSET', q.errors, number, cmsgpack.pack(errors))
  call('ZADD', q.dead, 0, number)
  call('HSET', q.dead_ids, record[ID], number)
  record[FENCE], record[CONSUMER] = 0, ''
  keep(q, number, record)
  free_key(q, number, record)
end
