-- Count the waiting jobs that would run before a new job of normal priority.
-- KEYS: 1 queue
-- ARGV: owners of the new job, in JSON
-- Returns one number per owner.
local _, lanes, first_low = lanes_in(KEYS[1])
local counts = {}
for i, owner in ipairs(ARGV) do counts[i] = place_among(lanes, first_low, owner, false) - 1 end
return counts
