-- Settling deliveries.

-- Reads one settlement from the arguments: number, fence, verdict, delay in ms, text.
local function settlement(args, at)
  return {
    number = args[at], fence = tonumber(args[at + 1]), verdict = args[at + 2],
    after = tonumber(args[at + 3]), text = args[at + 4],
  }
end
local SETTLEMENT = 5

-- For each current receipt the record and the set of its message: an expired lease
-- may have been detected or not. Nothing for stale receipts.
local function held(q, receipts)
  local records, places = {}, {}
  for from = 1, #receipts, STEP do
    local numbers = {}
    for at = from, math.min(from + STEP - 1, #receipts) do numbers[#numbers + 1] = receipts[at].number end
    local packed = read_key('hash', 'HMGET', q.records, unpack(numbers))
    local leased = read_key('zset', 'ZMSCORE', q.leased, unpack(numbers))
    for at, number in ipairs(numbers) do
      local record, fence = unpacked_or_nil(packed[at]), receipts[from + at - 1].fence
      if record and fence ~= 0 and record[FENCE] == fence then
        local place = leased[at] and q.leased or (read_key('zset', 'ZSCORE', q.returned, number) and q.returned)
        records[from + at - 1], places[from + at - 1] = place and record, place
      end
    end
  end
  return records, places
end

-- Ready after a delay in milliseconds.
local function hold_back(q, number, after)
  if after > 0 then
    call('ZADD', q.delayed, now + after, number)
  else
    return_message(q, number)
  end
end

-- An ending is a settlement, a record and a set.
local function touch_finished(q, endings)
  local kept, keyed, back, failed = false, false, false, false
  for _, one in ipairs(endings) do
    kept = kept or one[1].verdict ~= 'ack'
    keyed = keyed or one[2][KEY] ~= ''
    back = back or one[3] == q.returned
    failed = failed or one[2][SETTLED] ~= 0
  end
  if #endings > 0 then
    touch(q, 'leased', 'ZREM')
    touch(q, 'records', 'HDEL')
    touch(q, 'payloads', 'HDEL')
  end
  if failed then touch(q, 'errors', 'HDEL') end
  if back then touch(q, 'returned', 'ZREM') end
  if keyed then touch_key(q) end
  if kept then
    touch_buried(q)
    touch(q, 'returned', 'ZADD')
    touch(q, 'delayed', 'ZADD')
  end
end

-- Settles a delivery whose message stays.
local function finish(q, one, record)
  local number = one.number
  if one.verdict == 'release' then
    record[ATTEMPTS] = record[ATTEMPTS] - 1
    keep(q, number, record)
    hold_back(q, number, one.after)
  elseif one.verdict == 'dead' or record[ATTEMPTS] >= q.attempts then
    bury(q, number, record, one.text)
  else
    local errors = errors_of(q, number)
    remember(errors.history, one.text)
    call('HSET', q.errors, number, cmsgpack.pack(errors))
    record[SETTLED] = record[ATTEMPTS]
    keep(q, number, record)
    hold_back(q, number, one.after)
    count(q, 'retried', 1)
  end
end

-- Settles deliveries; acks are deleted together.
local function finish_all(q, endings)
  local acked, failed, leased, returned = {}, {}, {}, {}
  for _, one in ipairs(endings) do
    local numbers = one[3] == q.leased and leased or returned
    numbers[#numbers + 1] = one[1].number
    if one[1].verdict == 'ack' then
      acked[#acked + 1] = one[1].number
      -- A record without the number is of a release that did not count these.
      if one[2][SETTLED] ~= 0 then failed[#failed + 1] = one[1].number end
    end
  end
  call_all('ZREM', q.leased, leased)
  call_all('ZREM', q.returned, returned)
  call_all('HDEL', q.records, acked)
  call_all('HDEL', q.payloads, acked)
  call_all('HDEL', q.errors, failed)
  count(q, 'acked', #acked)
  for _, one in ipairs(endings) do
    local settled, record = one[1], one[2]
    if settled.verdict == 'ack' then
      free_key(q, settled.number, record)
    else
      record[FENCE], record[CONSUMER] = 0, ''
      finish(q, settled, record)
    end
  end
end
