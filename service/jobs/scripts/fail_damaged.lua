-- Fail a job whose record is damaged, whatever can be read of its state, and publish the event.
-- KEYS: 1 record, 2 outbox, 3 owners with webhook endpoints
-- ARGV: 1 job id, 2 oldest outbox entry to keep, then fields and values (which include the state)
-- Returns 1 if it has failed so, 0 if it had ended or there is no record.
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
if redis.call('TYPE', KEYS[1]).ok ~= 'hash' then redis.call('DEL', KEYS[1]) end
if ENDED[redis.call('HGET', KEYS[1], 'state')] then return 0 end
leave_all(ARGV[1])
finish(ARGV[1], {unpack(ARGV, 3)}, KEYS[2], KEYS[3], ARGV[2])
return 1
