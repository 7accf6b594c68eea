-- Every check before the first change: Redis does not roll a script back when a command in it fails.
--
-- A script first names what it may touch: `allow` takes a key, the type that it must have, and the commands; `ready`
-- then checks the user's right to all of them. In a cluster whose slots move, asking for the type also fails for a key
-- that has moved already, before anything changed. Builds with debug assertions refuse a change that was not named, so
-- any test that runs the change finds a missing name.

-- From 7.0 on. Before that the client probes every command on first use of the queue.
local may_run = redis.acl_check_cmd

-- Checked types by key; the keys; and pairs of a key and its commands, separated by commas.
local kinds, touched, named = {}, {}, {}

-- Ends the script. The client parses the text between the brackets, and ignores the text of the server around it.
local function refuse(...) error('[[' .. table.concat({ ... }, ' ') .. ']]', 0) end

-- Names commands on a key.
local function name_key(key, commands)
  touched[#touched + 1] = key
  local at = #named
  named[at + 1], named[at + 2] = key, commands
end

local function check_type(key, kind)
  local found = redis.call('TYPE', key).ok
  if kind and found ~= kind and found ~= 'none' then refuse('WRONGTYPE', found, kind, key) end
end

-- Names commands on a key that must hold this type or nothing; any type when `kind` is false. Commands with a
-- subcommand are written with it, `XGROUP CREATE`.
local function allow(key, kind, commands)
  if kinds[key] == nil then
    check_type(key, kind)
    kinds[key] = kind
  elseif kinds[key] ~= kind then
    refuse('WRONGTYPE', kinds[key] or 'value', kind or 'value', key)
  end
  name_key(key, commands)
end

-- A read, which fails on a wrong type.
local function read_key(kind, command, key, ...)
  local answer = redis.pcall(command, key, ...)
  if type(answer) == 'table' and answer.err then
    check_type(key, kind)
    error(answer.err, 0)
  end
  kinds[key] = kind
  return answer
end

local function granted(command, key)
  if command == 'XREADGROUP' then return may_run(command, 'GROUP', 'g', 'c', 'STREAMS', key, '>') end
  local space = string.find(command, ' ', 1, true)
  if not space then return may_run(command, key, '0', '0') end
  return may_run(string.sub(command, 1, space - 1), string.sub(command, space + 1), key, 'x', '0')
end

local is_ready, changed = false, false

-- Checks the permissions for everything named. `commands` lists all possible commands: each is checked once, on any
-- key, and all keys at once; every pair only where that is not enough.
local function ready(commands)
  is_ready = true
  if not may_run or #touched == 0 then return end
  local all = true
  for from = 1, #touched, 1000 do
    local to = math.min(from + 999, #touched)
    all = all and may_run('DEL', unpack(touched, from, to)) and may_run('MGET', unpack(touched, from, to))
  end
  for at = 1, #commands do all = all and granted(commands[at], touched[1]) end
  if all then return end
  for at = 1, #named, 2 do
    for command in string.gmatch(named[at + 1], '[^,]+') do
      if not granted(command, named[at]) then refuse('NOPERM', command, named[at]) end
    end
  end
end

local call = redis.call

-- The same for a command with a subcommand before its key.
local call_sub = redis.call

if STRICT then
  local CHANGES = {
    DEL = 1, HDEL = 1, HSET = 1, LPUSH = 1, PERSIST = 1, PEXPIRE = 1, RPOP = 1, RPUSH = 1, SET = 1, XACK = 1, XADD = 1,
    XCLAIM = 1, XGROUP = 1, XREADGROUP = 1, XTRIM = 1, ZADD = 1, ZREM = 1,
  }
  local function check_named(is_change, command, key)
    if is_change and not is_ready then error('bug: ' .. command .. ' before the checks', 0) end
    changed = changed or is_change
    if not changed then return end
    for at = 1, #named, 2 do
      if named[at] == key and string.find(',' .. named[at + 1] .. ',', ',' .. command .. ',', 1, true) then return end
    end
    error('bug: ' .. command .. ' of ' .. key .. ' was not named', 0)
  end
  local ask = ready
  function ready(commands)
    local there = {}
    for _, command in ipairs(commands) do there[command] = true end
    for at = 2, #named, 2 do
      if kinds[named[at - 1]] == nil then error('bug: the type of ' .. named[at - 1] .. ' was not checked', 0) end
      for command in string.gmatch(named[at], '[^,]+') do
        if not there[command] then error('bug: ' .. command .. ' is not among what is asked for', 0) end
      end
    end
    ask(commands)
  end
  function call(command, key, ...)
    check_named(CHANGES[command], command, key)
    return redis.call(command, key, ...)
  end
  function call_sub(command, sub, key, ...)
    check_named(CHANGES[command], command .. ' ' .. sub, key)
    return redis.call(command, sub, key, ...)
  end
end
