-- Renew the lease of an execution, store its progress, and report whether it should go on.
-- KEYS: 1 record, 2 lease, 3 preview
-- ARGV: 1 execution id, 2 lease in ms (0 = do not renew); with progress also 3 step, 4 total steps, 5 phase, 6 GPU time
--       of this execution's new steps in ms; with a new preview also 7 the picture
-- Returns 'continue', 'cancel' (cancellation was requested) or 'lost' (the execution no longer has the job).
local record = redis.call('HMGET', KEYS[1], 'state', 'execution_id', 'step', 'cancel_requested', 'phase')
local state, execution, old_step, cancel_requested, old_phase = unpack(record)
if state ~= RUNNING or execution ~= ARGV[1] then return 'lost' end
if ARGV[2] ~= '0' then
  redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
  redis.call('EXPIRE', KEYS[3], KEEP_PREVIEW_S)
end
if #ARGV > 2 then
  local step = math.max(tonumber(old_step), tonumber(ARGV[3])) -- a resumed job repeats steps; progress never decreases
  redis.call('HSET', KEYS[1], 'step', step, 'total_steps', ARGV[4], 'phase', ARGV[5])
  add_gpu_time(KEYS[1], tonumber(ARGV[6]))
  if ARGV[7] then store_preview(KEYS[1], KEYS[3], ARGV[7]) end
  local has_changed = step ~= tonumber(old_step) or ARGV[5] ~= old_phase or ARGV[7]
  if has_changed then emit(string.sub(KEYS[1], #RECORD + 1), 'progress') end
end
return cancel_requested == 'true' and 'cancel' or 'continue'
