-- KEYS: the stream. ARGV: id to start behind or nothing, most entries.
if redis.call('EXISTS', KEYS[1]) == 0 then return redis.error_reply('NOGROUP unknown stream ' .. KEYS[1]) end
return handed(call('XRANGE', KEYS[1], ARGV[1] == '' and '-' or '(' .. ARGV[1], '+', 'COUNT', ARGV[2]))
