-- KEYS: the stream. ARGV: prefix, `first` when the process begins to use it. Fails where any other script on the stream would; changes nothing.
-- From 7.0 on each script checks its permissions, and no probe is needed.
if ARGV[2] == 'first' and may_run then return 0 end
local key, side = KEYS[1], ARGV[1]
touch_appended(key, side, '')
touch_greeted(key, side)
allow(key, 'stream', 'XREADGROUP,XACK,XRANGE,XREVRANGE,XPENDING,XTRIM,XGROUP CREATE,XGROUP SETID')
allow(side .. 'committed', 'hash', 'HGET,HSET,HDEL')
try_commands(side .. 'readers', side .. 'probe')
allow(side .. 'probe', 'string', 'SET')
ready({
  'GET', 'HDEL', 'HGET', 'HSET', 'SET', 'XACK', 'XADD', 'XCLAIM', 'XGROUP CREATE', 'XGROUP DELCONSUMER',
  'XGROUP SETID', 'XINFO STREAM', 'XPENDING', 'XRANGE', 'XREADGROUP', 'XREVRANGE', 'XTRIM',
})
try_write(side .. 'probe')
return 0
