-- Renew the lease of an execution, store its progress, and report whether it should go on.
-- KEYS: 1 record, 2 lease
-- ARGV: 1 execution id, 2 lease in ms (0 = do not renew), 3 job id; with progress also 4 step, 5 total steps, 6 phase
-- Returns 'continue', 'cancel' (cancellation was requested) or 'lost' (the execution no longer has the job).
local record = redis.call('HMGET', KEYS[1], 'state', 'execution_id', 'cancel_requested', 'step', 'phase')
local state, execution, cancel_requested, old_step, old_phase = unpack(record)
if state ~= RUNNING or execution ~= ARGV[1] then return 'lost' end
if ARGV[2] ~= '0' then redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2]) end
if #ARGV > 3 then
  local step = math.max(tonumber(old_step), tonumber(ARGV[4])) -- a resumed job repeats steps; its progress never decreases
  redis.call('HSET', KEYS[1], 'step', step, 'total_steps', ARGV[5], 'phase', ARGV[6])
  if step ~= tonumber(old_step) or ARGV[6] ~= old_phase then emit(ARGV[3], 'progress') end
end
return cancel_requested == 'true' and 'cancel' or 'continue'
