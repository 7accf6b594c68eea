-- Ending deliveries.

-- One settlement off the arguments: number, fence, verdict, delay in ms, text.
local function settlement(args, at)
  return {
    number = args[at], fence = tonumber(args[at + 1]), verdict = args[at + 2],
    after = tonumber(args[at + 3]), text = args[at + 4],
  }
end
local SETTLEMENT = 5

-- The record, and the set that the message is in, when this lease is its last one and nobody took it over: an
-- expired lease may have been noticed or not.
local function held(q, number, fence)
  local record = record_of(q, number)
  if not record or fence == 0 or record[FENCE] ~= fence then return nil end
  for _, place in ipairs({ q.leased, q.returned }) do
    if call('ZSCORE', place, number) then return record, place end
  end
  return nil
end

-- Ready after a delay in milliseconds.
local function hold_back(q, number, after)
  if after > 0 then
    call('ZADD', q.delayed, now + after, number)
  else
    give_back(q, number)
  end
end

local function touch_finished(q, one, record)
  touch(q, 'leased', 'ZREM')
  touch(q, 'returned', 'ZREM')
  if one.verdict == 'ack' then
    touch_forgotten(q, record)
    return
  end
  touch_buried(q)
  touch(q, 'returned', 'ZADD')
  touch(q, 'delayed', 'ZADD')
end

local function finish(q, one, record, place)
  local number = one.number
  call('ZREM', place, number)
  record[FENCE], record[CONSUMER] = 0, ''
  local spent = one.verdict == 'retry' and record[ATTEMPTS] >= q.attempts
  if one.verdict == 'ack' then
    forget(q, number, record)
    count(q, 'acked', 1)
  elseif one.verdict == 'release' then
    record[ATTEMPTS] = record[ATTEMPTS] - 1
    keep(q, number, record)
    hold_back(q, number, one.after)
  elseif one.verdict == 'dead' or spent then
    bury(q, number, record, one.text)
  else
    local errors = errors_of(q, number)
    errors.history[#errors.history + 1] = string.sub(one.text, 1, HISTORY_BYTES)
    if #errors.history > HISTORY then table.remove(errors.history, 1) end
    call('HSET', q.errors, number, cmsgpack.pack(errors))
    record[SETTLED] = record[ATTEMPTS]
    keep(q, number, record)
    hold_back(q, number, one.after)
    count(q, 'retried', 1)
  end
end
