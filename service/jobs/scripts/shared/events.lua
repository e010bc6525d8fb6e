-- The stream of changes from which open pages are kept up to date.

local EVENTS, KEPT_EVENTS = 'ivm:events', 10000

-- Append an entry: the video, its owner (JSON, absent if the record does not say it) and the kind of change: 'created',
-- 'progress', 'ended' or 'deleted'. Readers take everything else from the record, as it is by then. A stream that cannot
-- be written does not stop a job.
local function emit(id, kind)
  local owner = redis.pcall('HGET', RECORD .. id, 'owner')
  local entry = {'id', id, 'kind', kind}
  if type(owner) == 'string' then entry[5], entry[6] = 'owner', owner end
  redis.pcall('XADD', EVENTS, 'MAXLEN', '~', KEPT_EVENTS, '*', unpack(entry))
end
