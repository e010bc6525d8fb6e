-- Workers without a loaded model. Each has an entry '<expiry in ms> <why it cannot load the model, or nothing>'.

-- Return the reasons by worker, of those whose entries have expired or of the others.
local function unloaded(entries, now, has_expired)
  local found, all = {}, redis.call('HGETALL', entries)
  for i = 1, #all, 2 do
    local expiry, reason = string.match(all[i + 1], '^(%d+) (.*)$')
    if (tonumber(expiry or 0) < now) == has_expired then found[all[i]] = reason or '' end
  end
  return found
end
