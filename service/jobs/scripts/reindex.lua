-- Write jobs into their indexes, for records of older versions and changes that older workers make. Jobs that are being
-- deleted stay out of them.
-- ARGV: 1 '1' = all jobs, '0' = those that are not in the index of their state, 2 .. the job ids
for i = 2, #ARGV do
  local id = ARGV[i]
  local values = redis.pcall('HMGET', RECORD .. id, 'state', 'delete_requested')
  local state, is_deleted = decode(values[1]), values[2] == 'true'
  local is_indexed = type(state) == 'string' and redis.call('ZSCORE', INDEX .. 'state:' .. state, id)
  if is_deleted then
    if ENDED[values[1]] then erase(id) end -- an older worker has ended it
  elseif redis.call('EXISTS', RECORD .. id) == 1 and (ARGV[1] == '1' or not is_indexed) then index(id) end
end
