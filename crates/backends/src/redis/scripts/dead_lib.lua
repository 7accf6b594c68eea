-- Dead letters and error history.

-- Failed attempts kept of a message's life, how long an error and the whole record of an attempt may be, and the length of
-- the answers of earlier attempts together. As in `towpath_core::attempt`.
local HISTORY, ERROR_BYTES, RECORD_BYTES, ANSWERS_BYTES = 10, 1024, 3584, 2048

-- Cuts the text of an attempt: an error, or a record of error, facts and answer with separators between.
local function bounded(entry)
  return string.sub(entry, 1, string.find(entry, '\30', 1, true) and RECORD_BYTES or ERROR_BYTES)
end

-- Adds an attempt within the bounds; the oldest answers go first.
local function remember(history, entry)
  history[#history + 1] = bounded(entry)
  if #history > HISTORY then table.remove(history, 1) end
  local room = ANSWERS_BYTES
  for at = #history, 1, -1 do
    local _, ends = string.find(history[at], '^[^\30]*\30[^\30]*\30')
    if ends then
      local bytes = #history[at] - ends
      if bytes > room then
        room = 0
        history[at] = string.sub(history[at], 1, ends - 1)
      else
        room = room - bytes
      end
    end
  end
end

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
  errors.reason, errors.died_at = bounded(reason), now
  call('HSET', q.errors, number, cmsgpack.pack(errors))
  call('ZADD', q.dead, 0, number)
  call('HSET', q.dead_ids, record[ID], number)
  record[FENCE], record[CONSUMER] = 0, ''
  keep(q, number, record)
  free_key(q, number, record)
end
