-- The two algorithms of the limiter, in exact integers, equal to `limiter::decide` in the core.
-- KEYS: the key of each take. ARGV: `take` or `peek`, a time in ms instead of the server's (tests), then for each
-- take: algorithm, capacity, refill, period or window in ms, amount. Amounts are millionths of a token.
-- Returns for each: allowed, remaining, ms until it would be allowed, ms until it is full.

local SLOTS = 60
local forced = ARGV[2] ~= ''
local clock = redis.call('TIME')
local now_ms = forced and tonumber(ARGV[2]) or clock[1] * 1000 + math.floor(clock[2] / 1000)

local function small(number) return big(string.format('%.0f', number)) end

-- The effective time of a state made at `at`: one further ahead than its limit is long counts as now.
local function counts_as(at, length)
  if at > now_ms + length then return now_ms end
  return at
end

local function token_bucket(take, state)
  local scale = small(take.span)
  local full, per_ms = times(take.capacity, scale), take.refill
  local missing, at = {}, now_ms
  if state and state.algorithm == 'token_bucket' then
    local seen = counts_as(state.at, approximately(divide_up(full, per_ms)))
    at = math.max(now_ms, seen)
    missing = state.missing or minus(full, times(state.tokens, scale))
    if state.missing and state.span ~= take.span then
      missing = divide_up(times(missing, scale), small(state.span))
    end
    missing = minus(smaller(missing, full), times(per_ms, small(at - seen)))
  end
  local wanted, available = times(take.amount, scale), minus(full, missing)
  local allowed = compare(wanted, available) <= 0
  local after = allowed and plus(missing, wanted) or missing
  local function wait(tokens)
    if #tokens == 0 then return {} end
    return plus(divide_up(tokens, per_ms), small(at - now_ms))
  end
  return {
    allowed = allowed,
    remaining = divide(minus(full, after), scale),
    retry = allowed and {} or wait(minus(wanted, available)),
    reset = wait(after),
  }, {
    algorithm = 'token_bucket', missing = after, span = take.span, at = at,
    is_earlier = state and state.algorithm == 'token_bucket' and at < state.at,
  }
end

local function sliding_window(take, state)
  local width = math.max(math.ceil(take.span / SLOTS), 1)
  local slots, at = {}, now_ms
  if state and state.algorithm == 'sliding_window' then
    local seen = counts_as(state.at, width * (SLOTS + 1))
    at = math.max(now_ms, seen)
    local back = math.floor((state.at - seen) / width)
    for _, slot in ipairs(state.slots) do
      local start = slot[1] * state.span
      slots[#slots + 1] = { math.max((start - start % width) / width - back, 0), slot[2] }
    end
  end
  local current = (at - at % width) / width
  local kept, used = {}, {}
  for _, slot in ipairs(slots) do
    if slot[1] + SLOTS >= current then
      kept[#kept + 1] = slot
      used = plus(used, slot[2])
    end
  end
  local available = minus(take.capacity, used)
  local allowed = compare(take.amount, available) <= 0
  if allowed and #take.amount > 0 then
    local last = kept[#kept]
    if last and last[1] == current then
      last[2] = plus(last[2], take.amount)
    else
      kept[#kept + 1] = { current, take.amount }
    end
  end
  local function leaves_at(slot) return small(math.max((slot + SLOTS + 1) * width - now_ms, 0)) end
  local short, retry = minus(take.amount, available), {}
  for _, slot in ipairs(kept) do
    if allowed or #short == 0 then break end
    short = minus(short, slot[2])
    retry = leaves_at(slot[1])
  end
  return {
    allowed = allowed,
    remaining = allowed and minus(available, take.amount) or available,
    retry = retry,
    reset = #kept > 0 and leaves_at(kept[#kept][1]) or {},
  }, {
    algorithm = 'sliding_window', slots = kept, span = width, at = at,
    is_earlier = state and state.algorithm == 'sliding_window' and at < state.at,
  }
end

local function decide(take, state)
  return (take.algorithm == 'token_bucket' and token_bucket or sliding_window)(take, state)
end

-- A bucket that the reference system wrote after us, or alone: `tokens` and `last_refill`, in seconds, are its state.
-- We write the same two fields, and their values in `told`.
local function load_other(tokens, last_refill, told)
  if not tokens or not last_refill or told == tokens .. ' ' .. last_refill then return nil end
  local count, moment = tonumber(tokens), tonumber(last_refill)
  if not count or not moment or count ~= count or moment ~= moment or moment > 1e13 then return nil end
  return {
    algorithm = 'token_bucket', span = 0, slots = {}, at = math.ceil(moment * 1000 - 1e-3),
    tokens = small(math.floor(math.min(math.max(count, 0), 1e9) * 1e6 + 1e-3)),
  }
end

local function load(key)
  local known = read_key('hash', 'HMGET', key, 'algorithm', 'span_ms', 'at_ms', 'missing', 'slots', 'tokens',
    'last_refill', 'told')
  name_key(key, 'HSET,PEXPIRE')
  local other = load_other(known[6], known[7], known[8])
  if other then return other end
  if not known[1] or not known[3] then return nil end
  local state = { algorithm = known[1], span = tonumber(known[2]), at = tonumber(known[3]), slots = {} }
  state.missing = known[4] and big(known[4])
  for slot, taken in string.gmatch(known[5] or '', '(%d+):(%d+)') do
    state.slots[#state.slots + 1] = { tonumber(slot), big(taken) }
  end
  return state
end

-- Millionths as a decimal number for other programs.
local function tokens_of(micros)
  local digits = decimal(micros)
  digits = string.rep('0', 7 - #digits) .. digits
  local whole, rest = string.sub(digits, 1, -7), string.gsub(string.sub(digits, -6), '0+$', '')
  return rest == '' and whole or whole .. '.' .. rest
end

-- The fields of the reference system's bucket, so that both take from one.
local function others_fields(take, state, remaining)
  if state.algorithm ~= 'token_bucket' then return {} end
  local tokens = tokens_of(remaining)
  local seconds, ms = math.floor(state.at / 1000), state.at % 1000
  local last_refill = string.format('%.0f.%03.0f000', seconds, ms)
  return {
    'tokens', tokens, 'last_refill', last_refill, 'capacity', tokens_of(take.capacity),
    'refill_rate', string.format('%.14g', approximately(take.refill) / 1e3 / take.span),
    'told', tokens .. ' ' .. last_refill,
  }
end

local function save(key, state, reset, take, remaining)
  local slots = {}
  for at, slot in ipairs(state.slots or {}) do slots[at] = string.format('%.0f:%s', slot[1], decimal(slot[2])) end
  call('HSET', key, 'algorithm', state.algorithm, 'span_ms', string.format('%.0f', state.span),
    'at_ms', string.format('%.0f', state.at), 'missing', decimal(state.missing or {}), 'slots', table.concat(slots, ' '),
    unpack(others_fields(take, state, remaining)))
  -- A full limit equals a missing one; one more second, so that a clock set back a little admits nothing extra.
  if not forced then call('PEXPIRE', key, math.min(approximately(reset) + 1000, 1e13)) end
end

local takes, draft, decisions, refused = {}, {}, {}, false
for at, key in ipairs(KEYS) do
  local from = 3 + (at - 1) * 5
  local take = {
    key = key, algorithm = ARGV[from], capacity = big(ARGV[from + 1]), refill = big(ARGV[from + 2]),
    span = tonumber(ARGV[from + 3]), amount = big(ARGV[from + 4]),
  }
  takes[at] = take
  local state = draft[key] and draft[key].state or load(key)
  local decision, after = decide(take, state)
  draft[key] = { state = after, reset = decision.reset, take = take, remaining = decision.remaining }
  decisions[at] = decision
  refused = refused or not decision.allowed
end
local earlier = {}
if refused then
  for at, take in ipairs(takes) do
    local untouched, state = decide({
      algorithm = take.algorithm, capacity = take.capacity, refill = take.refill, span = take.span, amount = {},
    }, load(take.key))
    decisions[at].remaining, decisions[at].reset = untouched.remaining, untouched.reset
    -- Otherwise time would never advance.
    if state.is_earlier then 
      earlier[take.key] = { state = state, reset = untouched.reset, take = take, remaining = untouched.remaining }
    end
  end
end
ready({ 'HSET', 'PEXPIRE' })
for key, kept in pairs(earlier) do save(key, kept.state, kept.reset, kept.take, kept.remaining) end
for _, take in ipairs(takes) do
  local after = draft[take.key]
  if not refused and (ARGV[1] == 'take' or after.state.is_earlier) then
    save(take.key, after.state, after.reset, after.take, after.remaining)
  end
end
local answer = {}
for at, one in ipairs(decisions) do
  answer[at] = { one.allowed and 1 or 0, decimal(one.remaining), decimal(one.retry), decimal(one.reset) }
end
return answer
