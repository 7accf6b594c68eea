DROP TABLE fleet_epoch;
DROP TABLE fleet_deeds;
DROP TABLE fleet_rollouts;
DROP TABLE configs;
DROP TABLE agents;
