-- Renew the lease of an execution, store its progress, and report whether it should go on.
-- KEYS: 1 record, 2 lease
-- ARGV: 1 state running, 2 execution id, 3 lease in ms (0 = do not renew); with progress also 4 step, 5 total steps,
--       6 phase
-- Returns 'continue', 'cancel' (cancellation was requested) or 'lost' (the execution no longer has the job).
local record = redis.call('HMGET', KEYS[1], 'state', 'execution_id', 'step', 'cancel_requested')
local state, execution, step, cancel_requested = unpack(record)
if state ~= ARGV[1] or execution ~= ARGV[2] then return 'lost' end
if ARGV[3] ~= '0' then redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3]) end
if #ARGV > 3 then
  step = math.max(tonumber(step), tonumber(ARGV[4])) -- a resumed job repeats steps; its progress never decreases
  redis.call('HSET', KEYS[1], 'step', step, 'total_steps', ARGV[5], 'phase', ARGV[6])
end
return cancel_requested == 'true' and 'cancel' or 'continue'
