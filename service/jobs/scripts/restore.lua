-- Write the record of an ended job again, unless it exists.
-- KEYS: 1 record, 2 active jobs (from which retention takes ended ones)
-- ARGV: 1 job id, 2 .. the record's fields and values
-- Returns 1 if it was written, 0 if there was one.
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV, 2))
index(ARGV[1])
emit(ARGV[1], 'created')
redis.call('SADD', KEYS[2], ARGV[1])
return 1
