-- Write jobs into their indexes, for records of older versions and changes that older workers make.
-- ARGV: 1 '1' = all jobs, '0' = those that are not in the index of their state, 2 .. the job ids
for i = 2, #ARGV do
  local id = ARGV[i]
  local state = decode(redis.pcall('HGET', RECORD .. id, 'state'))
  local is_indexed = type(state) == 'string' and redis.call('ZSCORE', INDEX .. 'state:' .. state, id)
  if redis.call('EXISTS', RECORD .. id) == 1 and (ARGV[1] == '1' or not is_indexed) then index(id) end
end
