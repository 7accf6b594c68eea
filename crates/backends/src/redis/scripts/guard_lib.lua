-- Every check before the first change: Redis does not roll a script back when a command in it fails.
--
-- A script first names what it may touch, key by key, with the commands: `allow` checks the type of the key and the
-- user's right to each command. `call` refuses what was not named once something may have changed, so a name that is
-- missing here is found by any test that comes by. In a cluster whose slots move, asking for the type also fails for a
-- key that has moved already, before anything changed.

local CHANGES = {}
for name in string.gmatch('DEL EXPIRE HDEL HINCRBY HSET HSETNX LPUSH PERSIST PEXPIRE RPOP RPUSH SADD SET XACK XADD XCLAIM '
  .. 'XGROUP XREADGROUP XTRIM ZADD ZREM', '%S+') do CHANGES[name] = true end

-- The commands that were named, by key; the type that was asked for; and whether something may have changed.
local allowed, kinds, changed = {}, {}, false

-- From 7.0 on. Before that the client has tried every command when it connected.
local may_run = redis.acl_check_cmd

-- Ends the script. The client reads what stands between the brackets, whatever the server puts around it.
local function refuse(...) error('[[' .. table.concat({ ... }, ' ') .. ']]', 0) end

-- Names commands on a key that must hold this type or nothing; any type when `kind` is false. Commands with a
-- subcommand are written with it, `XGROUP CREATE`.
local function allow(key, kind, ...)
  local commands = allowed[key]
  if not commands then
    local found = redis.call('TYPE', key).ok
    if kind and found ~= kind and found ~= 'none' then refuse('WRONGTYPE', found, kind, key) end
    commands = {}
    allowed[key], kinds[key] = commands, kind
  elseif kinds[key] ~= kind then
    refuse('WRONGTYPE', kinds[key] or 'value', kind or 'value', key)
  end
  for at = 1, select('#', ...) do
    local command = select(at, ...)
    if not commands[command] then
      if may_run then
        local name, sub = string.match(command, '^(%S+) (%S+)$')
        local granted
        if command == 'XREADGROUP' then
          granted = may_run(command, 'GROUP', 'g', 'c', 'STREAMS', key, '>')
        elseif name then
          granted = may_run(name, sub, key, 'x', '0')
        else
          granted = may_run(command, key, '0', '0')
        end
        if not granted then refuse('NOPERM', command, key) end
      end
      commands[command] = true
    end
  end
end

local function check_named(command, key)
  local commands = allowed[key]
  if not (commands and commands[command]) then error('bug: ' .. command .. ' of ' .. key .. ' was not named', 0) end
end

local function call(command, key, ...)
  local changes = CHANGES[command]
  if changes or changed then check_named(command, key) end
  changed = changed or changes
  return redis.call(command, key, ...)
end

-- The same for a command with a subcommand before its key.
local function call_sub(command, sub, key, ...)
  local changes = CHANGES[command]
  if changes or changed then check_named(command .. ' ' .. sub, key) end
  changed = changed or changes
  return redis.call(command, sub, key, ...)
end

-- A field that is counted in; `value` is what is there now.
local function check_count(key, field, value)
  if not value then return end
  local number = string.find(value, '^-?%d+$') and tonumber(value)
  if not number or math.abs(number) > 2 ^ 53 then refuse('NOTANUMBER', field, key) end
end
