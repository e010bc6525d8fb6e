-- Count the waiting jobs that would run before a new job of normal priority.
-- KEYS: 1 queue
-- ARGV: 1 owner of the new job, in JSON
local place = place_in(KEYS[1], ARGV[1], false)
return place - 1
