-- End a job: set its final fields and publish the event. A repeated call of the same execution changes nothing.
-- KEYS: 1 record, 2 outbox, 3 owners with webhook endpoints
-- ARGV: 1 states it may be in (|state|state|), 2 execution it must belong to ("" = any), 3 final state,
--       4 oldest outbox entry to keep, 5 job id, then fields and values (which include the state)
-- Returns 1 if this execution ended the job so, now or before; else 0.
local state, execution = unpack(redis.pcall('HMGET', KEYS[1], 'state', 'execution_id'))
if not state or (ARGV[2] ~= '' and execution ~= ARGV[2]) then return 0 end
if ARGV[2] ~= '' and state == ARGV[3] then return 1 end
if not string.find(ARGV[1], '|' .. state .. '|', 1, true) then return 0 end
if state == QUEUED then leave(queue_of(KEYS[1]), ARGV[5]) end
finish(ARGV[5], {unpack(ARGV, 6)}, KEYS[2], KEYS[3], ARGV[4])
return 1
