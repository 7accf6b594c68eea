DROP TABLE requests;
DROP TABLE users;
