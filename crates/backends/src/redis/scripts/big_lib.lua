-- Natural numbers of any size, as limbs of seven decimal digits, the lowest first: Lua's own are exact only up to 2^53.

local BASE, DIGITS = 1e7, 7

local function trim(a)
  while #a > 0 and a[#a] == 0 do a[#a] = nil end
  return a
end

local function big(digits)
  local a = {}
  for to = #digits, 1, -DIGITS do
    a[#a + 1] = tonumber(string.sub(digits, math.max(to - DIGITS + 1, 1), to))
  end
  return trim(a)
end

local function decimal(a)
  if #a == 0 then return '0' end
  local parts = { string.format('%.0f', a[#a]) }
  for at = #a - 1, 1, -1 do parts[#parts + 1] = string.format('%07.0f', a[at]) end
  return table.concat(parts)
end

-- -1, 0 or 1.
local function compare(a, b)
  if #a ~= #b then return #a < #b and -1 or 1 end
  for at = #a, 1, -1 do
    if a[at] ~= b[at] then return a[at] < b[at] and -1 or 1 end
  end
  return 0
end

local function plus(a, b)
  local c, carry = {}, 0
  for at = 1, math.max(#a, #b) do
    local sum = (a[at] or 0) + (b[at] or 0) + carry
    carry = sum >= BASE and 1 or 0
    c[at] = sum - carry * BASE
  end
  if carry > 0 then c[#c + 1] = carry end
  return c
end

-- a - b, and zero when b is larger.
local function minus(a, b)
  if compare(a, b) <= 0 then return {} end
  local c, borrow = {}, 0
  for at = 1, #a do
    local rest = a[at] - (b[at] or 0) - borrow
    borrow = rest < 0 and 1 or 0
    c[at] = rest + borrow * BASE
  end
  return trim(c)
end

local function times(a, b)
  local c = {}
  for at = 1, #a + #b do c[at] = 0 end
  for i = 1, #a do
    local carry = 0
    for j = 1, #b do
      local sum = c[i + j - 1] + a[i] * b[j] + carry
      carry = math.floor(sum / BASE)
      c[i + j - 1] = sum - carry * BASE
    end
    c[i + #b] = c[i + #b] + carry
  end
  return trim(c)
end

local function approximately(a)
  local sum = 0
  for at = #a, 1, -1 do sum = sum * BASE + a[at] end
  return sum
end

-- Quotient and whether something is left; b is not zero.
local function divide(a, b)
  local quotient, rest, divisor = {}, {}, approximately(b)
  for at = #a, 1, -1 do
    table.insert(rest, 1, a[at])
    trim(rest)
    -- The estimate is off by one at most, because a limb is far smaller than a double is exact.
    local guess = math.floor(approximately(rest) / divisor)
    local product = times(b, trim({ guess % BASE, math.floor(guess / BASE) }))
    while compare(product, rest) > 0 do
      guess = guess - 1
      product = minus(product, b)
    end
    rest = minus(rest, product)
    while compare(rest, b) >= 0 do
      guess = guess + 1
      rest = minus(rest, b)
    end
    quotient[at] = guess
  end
  return trim(quotient), #rest > 0
end

local function divide_up(a, b)
  local quotient, rest = divide(a, b)
  return rest and plus(quotient, { 1 }) or quotient
end

local function smaller(a, b) return compare(a, b) < 0 and a or b end
