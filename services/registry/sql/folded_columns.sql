-- What does this file remember of what it folds?
select column_name from information_schema.columns where table_name = 'folded'
